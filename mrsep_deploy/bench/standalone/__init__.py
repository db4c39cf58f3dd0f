"""What runs in a measuring process of any interpreter: these files import Python's library, NumPy and each other.

A peer is measured in a virtual environment of its own, where this project is not installed, by ``peer_worker.py``.
"""
