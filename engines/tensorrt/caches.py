"""What TensorRT has found out on a GPU, kept for the next process: timings of kernels, and compiled kernels.

Both only save time: a file that cannot be read or written costs nothing but that.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from filelock import FileLock

from mrsep_deploy.errors import OutputError
from mrsep_deploy.files.parts import make_folder, write_file

DIGEST_BYTES = hashlib.sha256().digest_size

log = logging.getLogger(__name__)


class TimingCache:
    """A file of the kernel timings that builds on one device took, for the next; several processes may add to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, config: Any) -> None:
        """Let a build use the timings there are, and take down its own."""
        found = self._on_disk(config)
        if found is None or not config.set_timing_cache(found, False):
            self._lost("the library takes none")

    def save(self, config: Any) -> None:
        """Add what a build measured to what is on the disk by now."""
        new = config.get_timing_cache()
        if new is None:
            self._lost("the library has none")
            return
        try:
            make_folder(self.path.parent)
            with FileLock(f"{self.path}.lock"):
                merged = self._on_disk(config)
                if merged is None or not merged.combine(new, False):
                    self._lost("the library does not put them together")
                    return
                write_file(self.path, bytes(merged.serialize()))
        except (OutputError, OSError, NotImplementedError) as error:
            self._lost(str(error))

    def _lost(self, why: str) -> None:
        log.warning("kernel timings are not kept for the next build: %s", why)

    def _on_disk(self, config: Any) -> Any:
        """What is on the disk, or an empty one; None where the library makes none at all."""
        try:
            data = self.path.read_bytes()
        except OSError:
            data = b""
        # null for bytes the library does not recognise: another version's, or damaged
        return config.create_timing_cache(data) or config.create_timing_cache(b"")


class RuntimeCache:
    """A file of the kernels that TensorRT for RTX compiled for one engine on one GPU, which takes seconds to minutes.

    The file begins with the digest of what follows: kernels are code, and only what was written is loaded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: Any = None
        self._held = b""

    def load(self, config: Any) -> None:
        """Let contexts that are made with this configuration use the kernels there are, and take down their own."""
        self._cache = config.create_runtime_cache()
        if self._cache is None:
            self._lost("the library makes no cache")
            return
        self._held = self._on_disk()
        if self._held and not self._cache.deserialize(self._held):  # another driver's or version's
            self._held = b""
        if not config.set_runtime_cache(self._cache):
            self._cache = None
            self._lost("the library takes no cache")

    def save(self) -> None:
        """Keep what has been compiled by now, if that is more than there was."""
        found = None if self._cache is None else self._cache.serialize()
        data = b"" if found is None else bytes(found)
        if data in (b"", self._held):
            return
        try:
            make_folder(self.path.parent)
            with FileLock(f"{self.path}.lock"):
                write_file(self.path, hashlib.sha256(data).digest() + data)
        except (OutputError, OSError, NotImplementedError) as error:
            self._lost(str(error))
        self._held = data

    def _lost(self, why: str) -> None:
        log.warning("compiled kernels are not kept for the next run: %s", why)

    def _on_disk(self) -> bytes:
        try:
            whole = self.path.read_bytes()
        except OSError:
            return b""
        digest, data = whole[:DIGEST_BYTES], whole[DIGEST_BYTES:]
        return data if hashlib.sha256(data).digest() == digest else b""
