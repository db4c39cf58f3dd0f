"""Finds which engines work on this machine, and what to do about the others."""
