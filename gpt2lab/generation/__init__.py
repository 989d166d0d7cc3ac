"""Text from a model: one step of sampling, the forward pass with its cache, whole texts, what they measure, tasks."""
