"""Scores separated music against its true stems by SDR, as the field reports it.

Read in this order: ``dataset`` (finds tracks; ``mrsep_deploy.verification.multitrack`` reads them), ``metrics`` (two
definitions of SDR), ``scores`` (one track on one engine, and its file), ``summary`` (over tracks, and engines side by
side), ``evaluate`` (the run, which picks up where it stopped), ``report`` (tables, lines and JSON).
"""
