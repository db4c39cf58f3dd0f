"""The multi-resolution Hybrid Demucs family, HTDemucs included."""
