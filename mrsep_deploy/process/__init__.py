"""What all parts of a process share: its signals, its imports, its standard error, its cores."""
