"""ONNX graphs: traced from modules, or built node by node."""
