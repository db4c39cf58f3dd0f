"""Reading checkpoints: a restricted reader accepts tensors, plain values and known class names."""
