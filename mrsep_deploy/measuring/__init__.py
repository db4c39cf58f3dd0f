"""Measures and compares times and signals, for every tool."""
