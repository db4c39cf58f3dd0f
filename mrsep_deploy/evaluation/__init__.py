"""Scores separated music against its true stems by SDR, as the field reports it.

Tracks are found and read by ``mrsep_deploy.verification.multitrack``. Read in this order: ``metrics`` (two definitions
of SDR), ``scores`` (one track on one engine and its file, then over tracks, and engines side by side), ``evaluate``
(the run, which picks up where it stopped), ``report`` (tables, lines and JSON).
"""
