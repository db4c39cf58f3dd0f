"""Names for bundles: which name is which folder, and which one was exported last.

One JSON file, ``registry.json`` in the data folder, replaced whole under a lock, so that two exports at
once lose nothing. A bundle at ``models_dir()/NAME`` is *managed*: removing the name deletes it. Any other
is only *referenced*: removing the name forgets it. Reading needs neither the lock nor a writable disk.

The model that comes with the package is in no registry: it is there as long as its name is not taken, and it is
the default as long as there is no other.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from . import paths, shipped
from .atomic import explained, make_folder, write_file
from .bundle import ARCHIVE_SUFFIX, Bundle
from .errors import BundleError, OutputError, UsageError
from .manifest_check import MANIFEST_FILE
from .strict_json import MAX_BYTES, Record, is_unicode, parse, shown

FORMAT = "mrsep-deploy registry"
FORMAT_VERSION = 1
LOCK_SECONDS = 30.0

Status = Literal["ok", "missing", "damaged"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_NAME_RULE = "1 to 64 of A-Z a-z 0-9 _ . - that begin with a letter or digit"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"[0-9T:.+Z-]{10,40}")
_PATH = re.compile(r"[^\0]{1,4096}")


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


@dataclass(frozen=True)
class _Entry:
    path: str
    digest: str
    registered: str


@dataclass
class _Registry:
    models: dict[str, _Entry] = field(default_factory=dict)
    last: str | None = None

    def leaves_to_the_shipped(self, name: str) -> bool:
        """Whether the name stands for the model that comes with the package."""
        return name == shipped.NAME and name not in self.models


def validate_name(name: str) -> str:
    """The name, if it is one. Raises ``UsageError``."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(f"{shown(name)} is not a name for a model", f"Take {_NAME_RULE}.")
    return name


def register(bundle: Bundle, name: str | None = None) -> None:
    """Give a bundle a name (its own by default) and make it the default; a name in use moves to it.

    Raises:
        UsageError: not a valid name, or one whose managed bundle would be lost from sight.
        BundleError: the registry file is damaged.
        OutputError: the registry cannot be written.
    """
    name = validate_name(bundle.manifest.name if name is None else name)
    if not is_unicode(str(bundle.path)):
        raise UsageError(f"{shown(str(bundle.path))} is no Unicode text", "Move the bundle to another path.")
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    with _locked():
        registry = _load()
        _check_free(registry, name, bundle.path)
        registry.models[name] = _Entry(str(bundle.path), bundle.digest, now)
        registry.last = name
        _save(registry)


def check_free(name: str, path: Path) -> None:
    """Raise, as ``register`` would, if a bundle at ``path`` cannot have the name; ask before exporting."""
    _check_free(_load(), validate_name(name), Path(os.path.abspath(path)))


def resolve(name_or_path: str | os.PathLike[str] | None) -> Path:
    """The bundle a user means: an existing path, a name, or ``None`` for the default.

    The default is what was exported last; before the first export, the model that comes with the package.

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
    registry = _load()
    if name_or_path is None:
        if registry.last is None:
            return shipped.BUNDLE
        name = registry.last
    else:
        name = str(name_or_path)
        if registry.leaves_to_the_shipped(name):
            return shipped.BUNDLE
    entry = _entry(registry, name)
    if not os.path.exists(entry.path):
        fix = f"Export it again, or forget it: mrsep-deploy models remove {name}"
        raise BundleError(f"the model {name} was at {entry.path}, where nothing is now", fix)
    return Path(entry.path)


def list_models() -> list[RegisteredModel]:
    """Every registered bundle by name, then the shipped one."""
    registry = _load()
    registered = [
        RegisteredModel(
            name=name,
            path=Path(entry.path),
            digest=entry.digest,
            exported=entry.registered,
            is_default=name == registry.last,
            managed=_is_managed(name, entry),
            status=_status(Path(entry.path)),
        )
        for name, entry in sorted(registry.models.items())
    ]
    if not registry.leaves_to_the_shipped(shipped.NAME):
        return registered
    return [*registered, _shipped(registry.last is None)]


def _shipped(is_default: bool) -> RegisteredModel:
    bundle = Bundle.open(shipped.BUNDLE, verify=False)
    return RegisteredModel(
        shipped.NAME, bundle.path, bundle.digest, "", is_default, False, "ok", shipped=True
    )


def remove(name: str) -> None:
    """Forget a name, and delete its bundle if that is managed.

    Raises:
        UsageError: no such name.
        OutputError: the bundle or the registry cannot be changed; the name is still there.
    """
    with _locked():
        registry = _load()
        if registry.leaves_to_the_shipped(name):
            raise UsageError(
                f"{name} comes with mrsep-deploy and cannot be removed",
                "Name another model with -n, or export one: the last export is the default.",
            )
        entry = _entry(registry, name)
        if _is_managed(name, entry):
            # rmtree unlinks the links it meets and never goes through them
            with explained(Path(entry.path)):
                shutil.rmtree(entry.path)
        del registry.models[name]
        if registry.last == name:
            by_time = sorted(registry.models, key=lambda other: registry.models[other].registered)
            registry.last = by_time[-1] if by_time else None
        _save(registry)


def _entry(registry: _Registry, name: str) -> _Entry:
    if name in registry.models:
        return registry.models[name]
    known = sorted({*registry.models, shipped.NAME})
    close = difflib.get_close_matches(name, known, n=1)
    fix = f"Did you mean {close[0]}?" if close else "Give one of these, the path of a bundle, or export one."
    said = "there are" if len(known) > 1 else "there is"
    raise UsageError(f"there is no model {shown(name)}, {said}: {', '.join(known)}", fix)


def _check_free(registry: _Registry, name: str, path: Path) -> None:
    entry = registry.models.get(name)
    if entry and _is_managed(name, entry) and Path(entry.path) != path:
        raise UsageError(
            f"the name {name} belongs to the bundle at {entry.path}",
            f"Choose another name, or delete that bundle: mrsep-deploy models remove {name}",
        )


def _is_managed(name: str, entry: _Entry) -> bool:
    """Exactly ``models_dir()/NAME``, a real folder; nothing else may ever be deleted."""
    path = Path(entry.path)
    return (
        _NAME.fullmatch(name) is not None
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


def _load() -> _Registry:
    """The registry; empty if there is no file yet. A damaged one is for the user to look at."""
    path = paths.registry_file()
    fix = f"Repair {path}, or move it away and register the bundles again."
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8")
    except FileNotFoundError:
        return _Registry()
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"the registry {path} cannot be read: {error}", fix) from error
    what = f"registry {path}"
    top = Record(parse(text, what, fix), what, fix, ("format", "format_version", "last", "models"))
    top.choice("format", (FORMAT,))
    top.integer("format_version", FORMAT_VERSION, FORMAT_VERSION)
    models = {name: _read_entry(name, value, fix) for name, value in top.mapping("models").items()}
    last = None if top.is_null("last") else top.name("last")
    if last is not None and last not in models:
        top.wrong("last", "null or one of the models")
    return _Registry(models, last)


def _read_entry(name: str, value: object, fix: str) -> _Entry:
    where = f"registry.models[{shown(name)}]"
    if _NAME.fullmatch(name) is None:
        raise BundleError(f"{where} has a name that is none, expected {_NAME_RULE}", fix)
    record = Record(value, where, fix, ("path", "digest", "registered"))
    return _Entry(
        path=record.text("path", _PATH, "a path"),
        digest=record.text("digest", _SHA256, "64 hexadecimal digits"),
        registered=record.text("registered", _TIME, "a time"),
    )


def _save(registry: _Registry) -> None:
    tree = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "last": registry.last,
        "models": {name: asdict(entry) for name, entry in registry.models.items()},
    }
    write_file(paths.registry_file(), (json.dumps(tree, indent=2) + "\n").encode())
