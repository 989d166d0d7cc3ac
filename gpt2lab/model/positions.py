"""Position embeddings to start from: sinusoids, in which neighbours are alike."""

import torch


def sinusoids(T: int, D: int, *, longest: float = 100.0) -> torch.Tensor:
    """Return the (T, D) sines and cosines of positions, at D / 2 wavelengths from 2π up to 2π × `longest` tokens.

    Source: Vaswani et al., Attention Is All You Need (2017), section 3.5, where `longest` is 10,000.
    """
    frequencies = longest ** (-torch.arange(D // 2) / (D // 2))
    angles = torch.arange(T)[:, None] * frequencies  # (T, D / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
