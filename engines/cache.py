"""Built engines, kept for the next run: found by what they were built from and for.

    cache/engines/NAME.engine    the bytes the library gave, nothing added
    cache/engines/NAME.json      the side-car: every part of the key, size and sha256 of the engine
    cache/engines/NAME.lock      held while one process builds it
    cache/engines/NAME.GPU.kernels   what a library compiled for it on a GPU; it goes with the engine

NAME is the beginning of the sha256 of the key. An engine is native code: it is loaded only if a side-car
with exactly the wanted key confirms its bytes; anything else is built anew. The side-car appears last, so
a build that was killed or ran out of disk leaves nothing that could be taken for an engine.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from mrsep_deploy.engines.side_car import FIX, HEADER, EngineKey, Entry, SideCar, read, stat
from mrsep_deploy.errors import FormatError, OutputError
from mrsep_deploy.files import paths
from mrsep_deploy.files.parts import explained, make_folder, write_file
from mrsep_deploy.files.strict_json import written

_NAME = re.compile(r"[0-9a-f]{32}")
_TIMING = "timing-"
_KERNELS = ".kernels"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewEngine:
    """What a build gives: bytes, and plain facts about them for people."""

    data: bytes
    details: Mapping[str, object]


@dataclass(frozen=True)
class CachedEngine:
    """An engine whose bytes are what its side-car says."""

    key: EngineKey
    data: bytes
    seconds: float
    details: Mapping[str, object]
    from_cache: bool


@dataclass
class Pruned:
    """What pruning did: engines and leftovers removed, bytes freed, engines being built right now."""

    removed: int = 0
    bytes: int = 0
    busy: int = 0


class EngineCache:
    """The engines in one folder.

    Args:
        folder: which; by default the one this user's runs look into.
        must_keep: an engine that cannot be written is an error (``OutputError``), not a warning.
    """

    def __init__(self, folder: Path | None = None, *, must_keep: bool = False) -> None:
        self.folder = paths.cache_dir("engines") if folder is None else folder
        self._must_keep = must_keep

    def get_or_build(
        self, key: EngineKey, build: Callable[[], NewEngine], *, fresh: bool = False
    ) -> CachedEngine:
        """The engine of a key, built if it is not there.

        Of several processes that need it at the same time one builds it and the others wait. Where the
        cache cannot be written the engine is used all the same, with one line of warning.

        Args:
            build: makes it; what it raises passes through and leaves nothing behind.
            fresh: build even if there is one, and replace it.
        """
        found = None if fresh else self.find(key)
        if found is not None:
            return found
        lock = FileLock(self._file(key.name, "lock"))
        try:
            with suppress(OutputError, OSError, NotImplementedError):  # storing will say why
                make_folder(self.folder)
                _wait_for(lock)
            found = None if fresh else self.find(key)  # the process that held the lock may have built it
            return found or self._build(key, build)
        finally:
            lock.release()

    def find(self, key: EngineKey) -> CachedEngine | None:
        """The engine of a key if it is there and whole. Needs neither the lock nor a writable disk."""
        try:
            side_car, data = self._load(key.name)
        except (OSError, FormatError):
            return None
        if side_car.key != key:
            return None
        with suppress(OSError):
            os.utime(self._file(key.name, "json"))  # pruning goes by the last use
        return CachedEngine(key, data, side_car.milliseconds / 1000, side_car.details, True)

    def newest(
        self, accepts: Callable[[EngineKey], bool], effort: Callable[[EngineKey], int] = lambda _key: 0
    ) -> EngineKey | None:
        """The key of most ``effort``, and among these the one built last, of those that ``accepts`` takes."""
        found = ((each, each.key) for each in self.entries() if not each.problem)
        fitting = [(effort(key), each.created, each.name, key) for each, key in found if key and accepts(key)]
        return max(fitting, key=lambda each: each[:3])[3] if fitting else None

    def entries(self) -> list[Entry]:
        """Every engine and what is left of one, by the time of last use. Bytes are counted, not hashed."""
        found = (self._entry(name, hashed=False) for name in self._names({".engine", ".json"}))
        return sorted((e for e in found if e is not None), key=lambda e: (e.used, e.name))

    def prune(self, *, older_than: timedelta | None = None, everything: bool = False) -> Pruned:
        """Delete engines that would not be loaded and what killed builds left; more if asked for.

        Args:
            older_than: also engines that were not used for so long.
            everything: all engines.

        Raises:
            OutputError: a file cannot be deleted.
        """
        done = Pruned()
        with explained(self.folder):
            for name in self._names():
                with alone(self._file(name, "lock")) as is_alone:
                    if not is_alone:
                        done.busy += 1
                        continue
                    doomed = [path for path in self._files() if path.name.startswith(f".{name}.")]
                    entry = self._entry(name, hashed=True)
                    kernels = [
                        p for p in self._files() if p.name.startswith(f"{name}.") and _KERNELS in p.name
                    ]
                    if entry is None:
                        doomed += kernels
                    elif entry.is_doomed(older_than, everything):
                        # the side-car first: an engine without one is nothing
                        doomed += [self._file(name, "json"), self._file(name, "engine"), *kernels]
                    done.removed += bool(doomed)
                    done.bytes += _delete(doomed)
            if everything:
                done.bytes += _delete([path for path in self._files() if path.name.startswith(_TIMING)])
        return done

    def timing_file(self, library: str, device: str) -> Path:
        """Where kernel timings of one library version on one device are kept."""
        digest = hashlib.sha256(f"{library} {device}".encode()).hexdigest()[:16]
        return self.folder / f"{_TIMING}{digest}.bin"

    def kernels_file(self, key: EngineKey, device: str) -> Path:
        """Where the kernels are kept that a library compiled for an engine on one device."""
        return self.folder / f"{key.name}.{hashlib.sha256(device.encode()).hexdigest()[:16]}{_KERNELS}"

    # --- one engine

    def _build(self, key: EngineKey, build: Callable[[], NewEngine]) -> CachedEngine:
        started = time.perf_counter()
        new = build()
        seconds = time.perf_counter() - started
        try:
            self._store(key, new, seconds)
        except OutputError as error:
            if self._must_keep:
                raise
            log.warning("the engine is not kept for the next run: %s", error)
        return CachedEngine(key, new.data, seconds, new.details, False)

    def _store(self, key: EngineKey, new: NewEngine, seconds: float) -> None:
        engine, side_car = self._file(key.name, "engine"), self._file(key.name, "json")
        make_folder(self.folder)
        with suppress(OSError):
            side_car.unlink()  # of an engine that is being replaced
        created = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        digest = hashlib.sha256(new.data).hexdigest()
        about = SideCar(key, digest, len(new.data), created, round(seconds * 1000), new.details)
        try:
            write_file(engine, new.data)
            write_file(side_car, written(HEADER, about))
        except OutputError:
            with suppress(OSError):
                engine.unlink()
            raise

    def _read(self, name: str) -> SideCar:
        return read(self._file(name, "json"), HEADER, SideCar, "side-car", FIX)

    def _load(self, name: str) -> tuple[SideCar, bytes]:
        """Side-car and bytes; raises OSError or FormatError unless the one confirms the other."""
        side_car = self._read(name)
        with open(self._file(name, "engine"), "rb") as file:
            data = file.read(side_car.bytes + 1)
        if len(data) != side_car.bytes or hashlib.sha256(data).hexdigest() != side_car.sha256:
            raise FormatError(f"{name}.engine is not what its side-car describes", FIX)
        return side_car, data

    def _entry(self, name: str, hashed: bool) -> Entry | None:
        """A line of the listing; ``None`` if the files have just gone."""
        entry = Entry.of(self._file(name, "json"), self._file(name, "engine"))
        if entry is None:
            return None
        try:
            side_car = self._read(name)
            entry = replace(
                entry, key=side_car.key, details=side_car.details, created=side_car.created,
                seconds=side_car.milliseconds / 1000,
            )  # fmt: skip
            found = self._file(name, "engine").stat().st_size
            if found != side_car.bytes:
                raise FormatError(f"it has {found} bytes, expected {side_car.bytes}", FIX)
            if hashed:
                self._load(name)
        except (OSError, FormatError) as error:
            return entry.failed(error)
        return entry

    # --- files

    def _file(self, name: str, kind: str) -> Path:
        return self.folder / f"{name}.{kind}"

    def _files(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    def _names(self, suffixes: set[str] | None = None) -> list[str]:
        """The names that files here begin with."""
        files = [path for path in self._files() if suffixes is None or path.suffix in suffixes]
        stems = {path.name.lstrip(".").split(".")[0] for path in files}
        return sorted(stem for stem in stems if _NAME.fullmatch(stem))


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Holds the lock ``path`` and deletes its file at the end; yields false if another process holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        # While it is held: once it is released, the file may be the lock of another process.
        with suppress(OSError):
            path.unlink()
        lock.release()


def _wait_for(lock: FileLock) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("another process is building this engine; waiting for it")
        lock.acquire()


def _delete(doomed: Sequence[Path]) -> int:
    """Delete files, those that are there; how many bytes they had."""
    freed = 0
    for path in doomed:
        found = stat(path)
        if found is not None:
            path.unlink()
            freed += found.st_size
    return freed
