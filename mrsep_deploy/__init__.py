"""Trained music-separation models out of PyTorch and into production."""
