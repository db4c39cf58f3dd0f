"""The file that names of bundles are kept in: ``registry.json``, strictly read, and replaced whole under a lock."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock, Timeout
from msgspec import Meta, Struct

from mrsep_deploy.bundle import shipped
from mrsep_deploy.bundle.published import published
from mrsep_deploy.errors import BundleError, FormatError, OutputError, UsageError
from mrsep_deploy.files import paths
from mrsep_deploy.files.parts import explained, make_folder, write_file
from mrsep_deploy.files.reading import read_start
from mrsep_deploy.files.strict_json import MAX_BYTES, shown, written
from mrsep_deploy.files.typed_json import Sha256, document

LOCK_SECONDS = 30.0

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
NAME_RULE = "1 to 64 of A-Z a-z 0-9 _ . - that begin with a letter or digit"

_HEADER = {"format": "mrsep-deploy registry", "format_version": 1}
_WHY = {
    "chosen": "the default, chosen with models use",
    "last": "exported last",
    "shipped": "comes with mrsep-deploy",
}


@dataclass(frozen=True)
class Default:
    """The model that is taken where none is named, and why it is this one."""

    name: str
    reason: Literal["chosen", "last", "shipped"]

    @property
    def why(self) -> str:
        """The reason, for people."""
        return _WHY[self.reason]


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a name's bundle is, its digest, and when it got the name (ISO 8601, UTC)."""

    path: Annotated[str, Meta(pattern=r"\A[^\0]{1,4096}\Z")]
    digest: Sha256
    registered: Annotated[str, Meta(pattern=r"\A[0-9T:.+Z-]{10,40}\Z")]

    def is_managed_as(self, name: str) -> bool:
        """Whether it is at exactly ``models_dir()/NAME``, a real folder; nothing else may ever be deleted."""
        path = Path(self.path)
        return path == paths.models_dir() / name and path.is_dir() and not path.is_symlink()


class Registry(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The file: entries by name, the name exported last, and the default that was chosen, if one was."""

    last: str | None
    models: dict[Annotated[str, Meta(pattern=rf"\A{NAME.pattern}\Z", description=NAME_RULE)], Entry]
    chosen: str | None = None

    @property
    def default(self) -> Default:
        if self.chosen is not None:
            return Default(self.chosen, "chosen")
        return Default(shipped.NAME, "shipped") if self.last is None else Default(self.last, "last")

    @property
    def names(self) -> list[str]:
        """Every name that stands for a model, the shipped one's included."""
        return sorted({*self.models, shipped.NAME})

    def leaves_to_the_shipped(self, name: str) -> bool:
        """Whether the name stands for the model that comes with the package."""
        return name == shipped.NAME and name not in self.models

    def entry(self, name: str) -> Entry:
        """The entry of a name; ``UsageError`` lists what there is if there is none."""
        if name in self.models:
            return self.models[name]
        to_fetch = published().models
        close = difflib.get_close_matches(name, [*self.names, *to_fetch], n=1)
        if name in to_fetch:
            fix = f"Fetch it: mrsep-deploy fetch {name}"
        elif close:
            fetch = f" Fetch it: mrsep-deploy fetch {close[0]}" if close[0] not in self.names else ""
            fix = f"Did you mean {close[0]}?{fetch}"
        else:
            fix = "Give one of these, the path of a bundle, or export a checkpoint"
            fix += f": mrsep-deploy export FILE --name {name}" if NAME.fullmatch(name) else "."
        raise UsageError(f"no model {shown(name)} yet (here: {', '.join(self.names)})", fix)

    def place(self, name: str) -> Path:
        """The bundle of a name."""
        if self.leaves_to_the_shipped(name):
            return shipped.BUNDLE
        path = Path(self.entry(name).path)
        if not os.path.exists(path):
            fix = f"Export it again, or forget it: mrsep-deploy models remove {name}"
            raise BundleError(f"the model {name} was at {path}, where nothing is now", fix)
        return path

    def require_free(self, name: str, path: Path) -> None:
        """Raises ``UsageError`` if a bundle at ``path`` cannot have the name."""
        entry = self.models.get(name)
        if entry and entry.is_managed_as(name) and Path(entry.path) != path:
            raise UsageError(
                f"the name {name} belongs to the bundle at {entry.path}",
                f"Choose another name, or delete that bundle: mrsep-deploy models remove {name}",
            )


def load() -> Registry:
    """Reads the registry, an empty one if there is no file yet. A damaged one is for the user to look at.

    Raises:
        FormatError: the file cannot be read, or is no registry of this version.
    """
    path = paths.registry_file()
    fix = f"Repair {path}, or move it away and register the bundles again."
    what = f"registry {path}"
    try:
        data = read_start(path, MAX_BYTES)
    except FileNotFoundError:
        return Registry(None, {})
    except OSError as error:
        raise FormatError(f"the {what} cannot be read: {error}", fix) from error
    found = document(data, _HEADER, Registry, what, fix, optional=("chosen",))
    for field, chosen in (("last", found.last), ("chosen", found.chosen)):
        if chosen is not None and chosen not in found.models and (field, chosen) != ("chosen", shipped.NAME):
            raise FormatError(f"{what}.{field} is {shown(chosen)}, expected one of the models", fix)
    return found


@contextmanager
def changed() -> Iterator[Registry]:
    """Yields the registry under a lock, and replaces the file if the block ends without an error.

    Raises:
        OutputError: it cannot be written; the old file is still there.
    """
    folder = make_folder(paths.data_dir(), paths.SET_HOME)
    lock = FileLock(folder / "registry.lock", timeout=LOCK_SECONDS)
    with explained(folder, paths.SET_HOME):
        try:
            lock.acquire()
        except Timeout as error:
            message = f"another process has held {lock.lock_file} for {LOCK_SECONDS:.0f} s"
            raise OutputError(message, "Wait for it to end, and try again.") from error
    try:
        registry = load()
        yield registry
        write_file(paths.registry_file(), written(_HEADER, registry))
    finally:
        lock.release()
