"""Names for bundles: which name is which folder, and which one is taken where none is named.

One JSON file, ``registry.json`` in the data folder, replaced whole under a lock, so that two exports at
once lose nothing. A bundle at ``models_dir()/NAME`` is *managed*: removing the name deletes it. Any other
is only *referenced*: removing the name forgets it. Reading needs neither the lock nor a writable disk.

The default is the model that was chosen (``use``), or else the one exported last. The model that comes with the
package is in no registry: it is there as long as its name is not taken, and it is the default before any export.
"""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from mrsep_deploy.bundle import ARCHIVE_SUFFIX, Bundle, shipped
from mrsep_deploy.bundle.manifest_check import MANIFEST_FILE
from mrsep_deploy.bundle.registry_file import NAME, NAME_RULE, Default, Entry, Registry, load, save
from mrsep_deploy.errors import BundleError, OutputError, UsageError
from mrsep_deploy.files import paths
from mrsep_deploy.files.parts import explained, make_folder
from mrsep_deploy.files.strict_json import is_unicode, shown

LOCK_SECONDS = 30.0

Status = Literal["ok", "missing", "damaged"]

_FETCH = "Get its checkpoint (docs/running.md says where), then: mrsep-deploy export FILE --name {}"
_PUBLISHED = {
    "htdemucs": _FETCH,
    "htdemucs_6s": _FETCH,
    "htdemucs_ft": "It is four models; docs/running.md says where they are, and how they run together",
}


@dataclass(frozen=True)
class RegisteredModel:
    """One line of ``list_models``.

    Attributes:
        path: the bundle's folder or archive.
        digest: the bundle's digest when it was registered.
        exported: when it was registered, ISO 8601 in UTC; empty for the shipped one.
        is_default: the one taken when no model is named.
        managed: removing the name deletes the bundle.
        shipped: it comes with this package, and cannot be removed.
        status: ``missing`` if nothing is at ``path``, ``damaged`` if it does not open.
    """

    name: str
    path: Path
    digest: str
    exported: str
    is_default: bool
    managed: bool
    status: Status
    shipped: bool = False


def validate_name(name: str) -> str:
    """The name, if it is one. Raises ``UsageError``."""
    if NAME.fullmatch(name) is None:
        raise UsageError(f"{shown(name)} is not a name for a model", f"Take {NAME_RULE}.")
    return name


def register(bundle: Bundle, name: str | None = None) -> None:
    """Give a bundle a name (its own by default); a name in use moves to it.

    It is the default from then on, unless another one was chosen (:func:`use`).

    Raises:
        UsageError: not a valid name, or one whose managed bundle would be lost from sight.
        FormatError: the registry file is damaged.
        OutputError: the registry cannot be written.
    """
    name = validate_name(bundle.manifest.name if name is None else name)
    if not is_unicode(str(bundle.path)):
        raise UsageError(f"{shown(str(bundle.path))} is no Unicode text", "Move the bundle to another path.")
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    with _locked():
        registry = load()
        _check_free(registry, name, bundle.path)
        registry.models[name] = Entry(str(bundle.path), bundle.digest, now)
        registry.last = name
        save(registry)


def check_free(name: str, path: Path) -> None:
    """Raise, as ``register`` would, if a bundle at ``path`` cannot have the name; ask before exporting."""
    _check_free(load(), validate_name(name), Path(os.path.abspath(path)))


def resolve(name_or_path: str | os.PathLike[str] | None) -> Path:
    """The bundle a user means: an existing path, a name, or ``None`` for the default.

    The default is :func:`default_model`.

    A string is a path if it has a separator, ends in ``.zip``, or is a folder with a manifest.

    Raises:
        UsageError: nothing of that name; the message lists what there is.
        BundleError: the path, or the place a name stands for, is gone.
    """
    if name_or_path is not None and _is_path(name_or_path):
        path = Path(os.path.abspath(name_or_path))
        if not os.path.exists(path):
            fix = "Check the path, or give a name: mrsep-deploy models"
            raise BundleError(f"there is no bundle at {path}", fix)
        return path
    return default_bundle()[0] if name_or_path is None else _bundle_of(load(), str(name_or_path))


def default_bundle() -> tuple[Path, str]:
    """Returns the bundle of the :func:`default_model`, and why it is this one, for people.

    Raises:
        BundleError: the place that its name stands for is gone.
    """
    registry = load()
    return _bundle_of(registry, registry.default.name), registry.default.why


def _bundle_of(registry: Registry, name: str) -> Path:
    if registry.leaves_to_the_shipped(name):
        return shipped.BUNDLE
    entry = _entry(registry, name)
    if not os.path.exists(entry.path):
        fix = f"Export it again, or forget it: mrsep-deploy models remove {name}"
        raise BundleError(f"the model {name} was at {entry.path}, where nothing is now", fix)
    return Path(entry.path)


def default_model() -> Default:
    """The model taken where none is named: the chosen one, or the one exported last, or the shipped one."""
    return load().default


def use(name: str | None) -> None:
    """Choose the default, which exports do not change then; ``None`` for the one exported last, as before.

    Raises:
        UsageError: no such name.
        OutputError: the registry cannot be written.
    """
    with _locked():
        registry = load()
        if name is not None and not registry.leaves_to_the_shipped(name):
            _entry(registry, name)
        registry.chosen = name
        save(registry)


def names() -> list[str]:
    """The names of all models, the shipped one's included; no bundle is opened."""
    return load().names


def removable_names() -> list[str]:
    """:func:`names` without the shipped model's."""
    return sorted(load().models)


def list_models() -> list[RegisteredModel]:
    """Every registered bundle by name, then the shipped one."""
    registry = load()
    registered = [
        RegisteredModel(
            name=name,
            path=Path(entry.path),
            digest=entry.digest,
            exported=entry.registered,
            is_default=name == registry.default.name,
            managed=_is_managed(name, entry),
            status=_status(Path(entry.path)),
        )
        for name, entry in sorted(registry.models.items())
    ]
    if not registry.leaves_to_the_shipped(shipped.NAME):
        return registered
    return [*registered, _shipped(registry.default.name == shipped.NAME)]


def _shipped(is_default: bool) -> RegisteredModel:
    bundle = Bundle.open(shipped.BUNDLE, verify=False)
    return RegisteredModel(
        shipped.NAME, bundle.path, bundle.digest, "", is_default, False, "ok", shipped=True
    )


def remove(name: str) -> None:
    """Forget a name, and delete its bundle if that is managed. A default that was chosen is chosen no longer.

    Raises:
        UsageError: no such name.
        OutputError: the bundle or the registry cannot be changed; the name is still there.
    """
    with _locked():
        registry = load()
        if registry.leaves_to_the_shipped(name):
            raise UsageError(
                f"{name} comes with mrsep-deploy and cannot be removed",
                "Choose another default with mrsep-deploy models use NAME, or name a model with -n.",
            )
        entry = _entry(registry, name)
        if _is_managed(name, entry):
            # rmtree unlinks the links it meets and never goes through them
            with explained(Path(entry.path)):
                shutil.rmtree(entry.path)
        del registry.models[name]
        if registry.chosen == name:
            registry.chosen = None
        if registry.last == name:
            by_time = sorted(registry.models, key=lambda other: registry.models[other].registered)
            registry.last = by_time[-1] if by_time else None
        save(registry)


def _entry(registry: Registry, name: str) -> Entry:
    if name in registry.models:
        return registry.models[name]
    close = difflib.get_close_matches(name, registry.names, n=1)
    if name in _PUBLISHED:
        fix = _PUBLISHED[name].format(name)
    elif close:
        fix = f"Did you mean {close[0]}?"
    else:
        fix = "Give one of these, the path of a bundle, or export a checkpoint"
        fix += f": mrsep-deploy export FILE --name {name}" if NAME.fullmatch(name) else "."
    raise UsageError(f"no model {shown(name)} yet (here: {', '.join(registry.names)})", fix)


def _check_free(registry: Registry, name: str, path: Path) -> None:
    entry = registry.models.get(name)
    if entry and _is_managed(name, entry) and Path(entry.path) != path:
        raise UsageError(
            f"the name {name} belongs to the bundle at {entry.path}",
            f"Choose another name, or delete that bundle: mrsep-deploy models remove {name}",
        )


def _is_managed(name: str, entry: Entry) -> bool:
    """Exactly ``models_dir()/NAME``, a real folder; nothing else may ever be deleted."""
    path = Path(entry.path)
    return (
        NAME.fullmatch(name) is not None
        and path == paths.models_dir() / name
        and path.is_dir()
        and not path.is_symlink()
    )


def _is_path(value: str | os.PathLike[str]) -> bool:
    if not isinstance(value, str):
        return True
    separators = (os.sep, "/") if os.altsep is None else (os.sep, os.altsep)
    if any(separator in value for separator in separators):
        return True
    return value.lower().endswith(ARCHIVE_SUFFIX) or os.path.isfile(os.path.join(value, MANIFEST_FILE))


def _status(path: Path) -> Status:
    if not os.path.exists(path):
        return "missing"
    try:
        Bundle.open(path, verify=False)
    except BundleError:
        return "damaged"
    return "ok"


@contextmanager
def _locked() -> Iterator[None]:
    folder = make_folder(paths.data_dir(), paths.SET_HOME)
    lock = FileLock(folder / "registry.lock", timeout=LOCK_SECONDS)
    with explained(folder, paths.SET_HOME):
        try:
            lock.acquire()
        except Timeout as error:
            message = f"another process has held {lock.lock_file} for {LOCK_SECONDS:.0f} s"
            raise OutputError(message, "Wait for it to end, and try again.") from error
    try:
        yield
    finally:
        lock.release()
