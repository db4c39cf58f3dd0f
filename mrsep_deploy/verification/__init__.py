"""Compares what an engine computes with what the model computes: measured, judged, and explained.

Read in this order: ``figures`` (how far two signals are apart), ``multitrack`` and ``tracks`` (audio to run on),
``chain`` (a bundle run stage by stage), ``reference`` (what is right), ``verify`` (all of it), ``results`` (what was
found), ``worst`` (what is kept of it), ``bisect`` (which nodes are to blame), ``report`` (JSON, tables and lines).
"""
