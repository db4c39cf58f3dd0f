"""Compares what an engine computes with what the model computes: measured, judged, and explained.

Read in this order: ``figures`` (how far two signals are apart), ``signals``, ``multitrack`` and ``tracks`` (audio to
run on), ``chain`` (a bundle run stage by stage), ``reference`` (what is right), ``verify`` (all of it), ``results``
(what was found), ``bisect`` (which nodes are to blame), ``plain`` (JSON), ``report`` (tables and lines).
"""
