"""What libraries in C print of a damaged song goes nowhere: it is told once, in the program's own words.

libsndfile's MP3 decoder prints to the descriptor 2 and has no switch for that. Python prints there, too, and so may
another thread while a song is decoded: a program gives its own messages a descriptor of their own first.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from io import TextIOWrapper

_STDERR = 2
_lock = threading.Lock()
_users = 0
_saved = -1


def separate_stderr() -> None:
    """Give ``sys.stderr`` a descriptor of its own, to the same place; the one of libraries can then be muted."""
    stream = sys.stderr
    if not isinstance(stream, TextIOWrapper) or _descriptor() != _STDERR:
        return
    stream.flush()
    with contextlib.suppress(OSError):  # it is closed
        own = os.dup(_STDERR)
        sys.stderr = open(own, "w", 1, stream.encoding, stream.errors, closefd=False)  # noqa: SIM115


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Drop what is written to the descriptor 2 meanwhile, unless Python's own messages go there."""
    global _users, _saved
    if _descriptor() == _STDERR:
        yield
        return
    with _lock:
        if _users == 0:
            with contextlib.suppress(OSError):  # it is closed
                _saved = os.dup(_STDERR)
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, _STDERR)
                os.close(nothing)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _saved >= 0:
                os.dup2(_saved, _STDERR)
                os.close(_saved)
                _saved = -1


def _descriptor() -> int | None:
    """Of Python's own messages; None where they are no file."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return None
