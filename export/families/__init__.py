"""The model families that can be exported, a folder each."""
