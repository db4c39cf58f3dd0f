"""BS-RoFormer and Mel-Band RoFormer: masks on a spectrogram from attention over time and over bands."""
