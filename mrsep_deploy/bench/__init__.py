"""Benchmarks engines and baselines in interleaved rounds, each in a process of its own."""
