"""A song as segments, through a scheduler, and back to stems."""
