"""Imports the libraries of others: safe from interrupts, and without their reports to their makers."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

from mrsep_deploy.process.interrupts import aside

REPORTING = {"openvino": "openvino_telemetry"}
"""Libraries that report every import over the network, each with the package that does it and that it can do
without. (ONNX Runtime obeys a variable, which this package sets when it is imported.)"""

_lock = threading.RLock()


def library(name: str) -> Any:
    """Import a module by name.

    An interrupt never falls into the import, which some libraries turn into an ``ImportError``: it runs in a
    thread of its own, and the waiting is interrupted instead.

    Raises:
        ImportError, OSError: the module or one of its shared libraries is missing; what else its own code raises.
    """
    return aside(lambda: _imported(name))


def _imported(name: str) -> Any:
    reporting = REPORTING.get(name.partition(".")[0])
    with _hidden(reporting) if reporting else contextlib.nullcontext():
        return importlib.import_module(name)


@contextlib.contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Make a package look as if it were not installed."""
    with _lock:
        known = sys.modules.get(name)
        sys.modules[name] = None  # type: ignore[assignment]  # as Python's documentation has it
        try:
            yield
        finally:
            del sys.modules[name]
            if known is not None:
                sys.modules[name] = known
