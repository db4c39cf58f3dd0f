"""Where this program keeps what it makes: exported bundles, the registry, and caches.

    MRSEP_DEPLOY_HOME set:    HOME/registry.json  HOME/models/NAME  HOME/cache/...  HOME/config.toml
    otherwise:                the same below the platform's data, cache and configuration folders of this user

Nothing here creates a folder; the code that writes a file does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from mrsep_deploy.errors import UsageError

HOME_VARIABLE = "MRSEP_DEPLOY_HOME"
SET_HOME = f"Set {HOME_VARIABLE} to a folder that can be written."

_APP = "mrsep-deploy"


def data_dir() -> Path:
    """The folder of the registry and of the exported bundles.

    Raises:
        UsageError: this user has no home folder, or ``MRSEP_DEPLOY_HOME`` is a relative path.
    """
    return _below_home("", platformdirs.user_data_path)


def models_dir() -> Path:
    """The folder whose subfolders are the managed bundles, one for each name."""
    return data_dir() / "models"


def registry_file() -> Path:
    """The file that says which name is which bundle."""
    return data_dir() / "registry.json"


def config_file() -> Path:
    """The file with this user's settings; it need not exist.

    Raises:
        UsageError: as ``data_dir``.
    """
    return _below_home("", platformdirs.user_config_path) / "config.toml"


def cache_dir(kind: str) -> Path:
    """The folder of one kind of derived data (``bundles``, ``engines``); it may be deleted at any time."""
    return _below_home("cache", platformdirs.user_cache_path) / kind


def _below_home(folder: str, of_user: Callable[..., Path]) -> Path:
    """Returns a folder below ``MRSEP_DEPLOY_HOME`` or, where that is not set, the platform's for this user."""
    home = os.environ.get(HOME_VARIABLE, "")
    if not home:
        path = of_user(_APP, appauthor=False)
        # without a home, "~" stays as it is and would become a folder of that name
        if not path.is_absolute() or "~" in path.parts:
            raise UsageError("this user has no home folder to keep models in", SET_HOME)
        return path
    if not os.path.isabs(home):
        # relative to what? Two runs from two folders would not find each other's models
        raise UsageError(f"{HOME_VARIABLE} is {home!r}, expected an absolute path", SET_HOME)
    return Path(os.path.abspath(home)) / folder
