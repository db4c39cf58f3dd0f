"""SDR of separated music against its true stems, as the field reports it.

Read in this order: ``dataset`` (which tracks there are, and their audio), ``metrics`` (two definitions of
SDR), ``scores`` (what is known of one track, as data and as JSON), ``summary`` (over tracks, and engines side
by side), ``evaluate`` (the run, which picks up where it stopped), ``report`` (Markdown).
"""
