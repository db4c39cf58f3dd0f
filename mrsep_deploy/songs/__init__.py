"""Many songs in one go: found, named, decoded, separated, encoded, and remembered when done.

Read in this order: ``tracks`` (what was asked for, as files), ``stems`` (which outputs a song has),
``naming`` (where they go), ``loading`` and ``writing`` (one song in, one song out), ``journal`` (what is done
already), ``pipeline`` (all of it at once), ``reporting`` (progress and results, for people and programs).
"""
