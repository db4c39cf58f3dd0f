"""Demucs and its multi-resolution descendants: one spectrogram or several, a waveform branch, a shared bottleneck."""
