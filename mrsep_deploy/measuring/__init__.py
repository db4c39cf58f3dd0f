"""How times and signals are measured and compared, for every tool that does."""
