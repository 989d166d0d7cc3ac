"""A GPT-2 and its tokenizer, loaded by name, and the precision that it computes in."""
