"""What happens inside a GPT-2: traces of a forward pass, and what they say. Knows nothing of pictures."""
