"""HDemucs (hybrid, version 3) and Demucs (waveform only), as the package demucs publishes them."""
