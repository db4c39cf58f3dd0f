"""Is what an engine computes still what the model computes? Measured, judged, and explained.

Read in this order: ``figures`` (how far two signals are apart), ``signals`` and ``tracks`` (what is
listened to), ``chain`` (a bundle run stage by stage), ``reference`` (what is right), ``limits`` (how far is
too far), ``verify`` (all of it), ``bisect`` (which nodes are to blame), ``report`` (for people and programs).
"""
