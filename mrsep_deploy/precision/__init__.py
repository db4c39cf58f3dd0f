"""A graph in other element types: what stays in float32, and the converted graph."""
