"""Every model of the hub counts as downloaded: what is loaded is a stand-in. Pictures are small."""

import pytest

from gpt2lab.data import hub


@pytest.fixture(autouse=True)
def all_downloaded(monkeypatch):
    monkeypatch.setattr(hub, "is_downloaded", lambda name: True)


@pytest.fixture(autouse=True)
def drawn_small(small_pictures):
    """Whatever is drawn is compared with the package's own picture of the same size."""
