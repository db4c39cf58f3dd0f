"""What a person sees in a terminal: results, progress, tables, text made safe."""
