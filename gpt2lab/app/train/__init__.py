"""The Train tab: a text and its preview, settings and their cost, the runs with their curves."""

from gpt2lab.app.train.tab import build_train_tab as build_train_tab
