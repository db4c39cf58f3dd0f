"""Spectrograms and the stages that are no graphs, computed on the CPU with NumPy and SciPy."""
