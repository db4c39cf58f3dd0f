"""One segment through the stages: schedule, memory, streams."""
