"""TensorRT and TensorRT for RTX: building engines from graphs, and running them."""
