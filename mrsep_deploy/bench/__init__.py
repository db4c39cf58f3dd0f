"""Benchmarks: contenders in turns, each in a process of its own; what came of it, and whether to believe it."""
