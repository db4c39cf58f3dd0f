"""Trained music-separation models out of PyTorch and into production.

    bundle = mrsep_deploy.export("checkpoint.th", name="mine")     # needs mrsep-deploy[export]
    print(mrsep_deploy.inspect("mine").macs)
    with mrsep_deploy.Separator("mine") as separator:
        stems = separator.separate(mix)                            # {"drums": [C, L], ...}

Importing this package imports nothing else; each name is fetched when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrsep_deploy import errors as errors
    from mrsep_deploy.bundle import Bundle as Bundle
    from mrsep_deploy.export.api import export as export
    from mrsep_deploy.inspection.inspect import inspect as inspect
    from mrsep_deploy.separation.separator import Separator as Separator

__version__ = "0.1.0"

# From 1.32 on, ONNX Runtime reports its use to its makers unless this is set before it is imported. Nothing here
# talks to anybody; who wants to tell them sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Bundle", "Separator", "__version__", "errors", "export", "inspect"]

_MODULES = ("errors", "export")
_MEMBERS = {"Bundle": "bundle", "Separator": "separation.separator", "inspect": "inspection.inspect"}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _MEMBERS:
        return getattr(importlib.import_module(f"{__name__}.{_MEMBERS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
