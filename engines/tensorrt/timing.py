"""Kernel timings that TensorRT took while building, kept so that the next build need not take them again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from filelock import FileLock

from mrsep_deploy.errors import OutputError
from mrsep_deploy.files.parts import make_folder, write_file

log = logging.getLogger(__name__)


class TimingCache:
    """One file of timings, of one library version on one device; several processes may add to it.

    It only saves time: a file that cannot be read or written costs nothing but that.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, config: Any) -> None:
        """Let a build use the timings there are, and take down its own."""
        config.set_timing_cache(self._on_disk(config), False)

    def save(self, config: Any) -> None:
        """Add what a build measured to what is on the disk by now."""
        new = config.get_timing_cache()
        try:
            make_folder(self.path.parent)
            with FileLock(f"{self.path}.lock"):
                merged = self._on_disk(config)
                merged.combine(new, False)
                write_file(self.path, bytes(merged.serialize()))
        except (OutputError, OSError, NotImplementedError) as error:
            log.warning("kernel timings are not kept for the next build: %s", error)

    def _on_disk(self, config: Any) -> Any:
        try:
            data = self.path.read_bytes()
        except OSError:
            data = b""
        # null for bytes the library does not recognise: another version's, or damaged
        return config.create_timing_cache(data) or config.create_timing_cache(b"")
