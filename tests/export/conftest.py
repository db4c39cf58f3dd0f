"""Models here are so small that threads only wait for each other."""

from quiet_torch import quiet_torch

__all__ = ["quiet_torch"]
