"""GPU acceptance, in parts: see ``benchmarks/gpu_acceptance.py``."""
