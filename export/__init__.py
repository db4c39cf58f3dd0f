"""Checkpoint to bundle. The package is also the verb: ``mrsep_deploy.export("model.th")``."""

from __future__ import annotations

import sys
from types import ModuleType

from mrsep_deploy.export.api import export

__all__ = ["export"]


class _Verb(ModuleType):
    # Importing any of its modules binds this package to ``mrsep_deploy.export``, over whatever had that
    # name. The verb of that name therefore has to be the package itself.
    __call__ = staticmethod(export)


sys.modules[__name__].__class__ = _Verb
