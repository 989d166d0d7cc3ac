"""Text and tokens: what a name stands for, the hub, files of text, tokenizers, blocks for training."""
