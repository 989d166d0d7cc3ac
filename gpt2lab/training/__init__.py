"""Fine-tuning through transformers' Trainer, and the folder that a run leaves."""
