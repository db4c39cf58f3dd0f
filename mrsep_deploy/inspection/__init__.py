"""Shows the contents of a model, and its costs."""
