"""A bundle: a folder, or a ``.zip`` of it, with a manifest and the graphs that it lists.

    NAME/manifest.json        what the model is made of, and the sha256 of every file
    NAME/encoder.2048.onnx    ...

No byte leaves a bundle unchecked: a graph is handed out only if its size and hash are the manifest's and
it refers to no file outside.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mrsep_deploy.bundle.manifest import MAX_BATCH, FileInfo, Manifest, Stage
from mrsep_deploy.bundle.manifest_check import FIX, MANIFEST_FILE
from mrsep_deploy.bundle.manifest_json import from_json
from mrsep_deploy.bundle.onnx_scan import check_self_contained
from mrsep_deploy.bundle.places import Archive, Files, Folder
from mrsep_deploy.errors import BundleError, OutputError, UsageError
from mrsep_deploy.files import paths
from mrsep_deploy.files.parts import explained, make_folder, write_file
from mrsep_deploy.files.strict_json import MAX_BYTES

log = logging.getLogger(__name__)

ARCHIVE_SUFFIX = ".zip"
RANGES_FILE = "ranges.json"
"""The one file of a bundle that is no graph: what a calibration has measured."""


class Bundle:
    """An opened bundle; make one with ``Bundle.open`` or ``write_bundle``.

    Attributes:
        path: the folder or the archive, absolute.
        manifest: what the model is made of.
        digest: sha256 of the manifest's bytes. The manifest holds the hash of every file, so two bundles
            of one digest are the same model.
    """

    def __init__(self, path: Path, manifest_bytes: bytes, files: Files) -> None:
        self.path = path
        self.manifest = from_json(manifest_bytes)
        self.digest = hashlib.sha256(manifest_bytes).hexdigest()
        self.manifest_bytes = manifest_bytes
        self._files = files
        self._checked: set[str] = set()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._source: Bundle | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """The bundle at a place.

        Args:
            path: a folder or a ``.zip``.
            verify: read and hash every file now. Otherwise only sizes are compared, and each file is
                hashed when it is first used.

        Raises:
            BundleError: there is none, it is damaged, foreign or hostile, or of another format version.
        """
        place = Path(os.path.abspath(path))
        with about(place):
            files = _files_at(place)
            bundle = cls(place, files.read(MANIFEST_FILE, MAX_BYTES), files)
            for name, info in bundle.manifest.files.items():
                _check_size(name, files.size(name), info)
                if verify:
                    bundle._read(name)
        return bundle

    def at_batch(self, batch: int) -> Bundle:
        """The same bundle with ``batch`` segments in one run; its graphs and files are the same.

        Raises:
            UsageError: it is no possible number.
        """
        if not 1 <= batch <= MAX_BATCH:
            raise UsageError(f"a batch of {batch} segments was asked for, 1 to {MAX_BATCH} are possible")
        return self._as(self.manifest.at_batch(batch))

    def _as(self, manifest: Manifest) -> Bundle:
        other = copy.copy(self)
        other.manifest = manifest
        return other

    def made_from(self, source: Bundle) -> Bundle:
        """The same bundle, which knows the float32 bundle that it was made from."""
        other = self._as(self.manifest)
        other._source = source
        return other

    @property
    def twin(self) -> Bundle | None:
        """The same model in float32, for a bundle of lower precision: what it was made from, or what it holds.

        None for a float32 bundle, and where neither is there.
        """
        manifest = self.manifest
        if self._source is not None:
            return self._source.at_batch(manifest.batch)
        if any(stage.twin is None for stage in manifest.graph_stages):
            return None
        stages = (replace(stage, file=stage.twin or stage.file, twin=None) for stage in manifest.stages)
        tensors = (replace(tensor, dtype="float32") for tensor in manifest.tensors)
        return self._as(replace(manifest, precision="float32", stages=tuple(stages), tensors=tuple(tensors)))

    def graph_bytes(self, stage: Stage) -> bytes:
        """The ONNX graph of a stage of kind ``graph``, checked against the manifest.

        Raises:
            BundleError: the file is not what the manifest says.
            ValueError: the stage has no graph.
        """
        return self.read(_file_of(stage))

    def ranges_bytes(self) -> bytes | None:
        """What a calibration has stored, checked against the manifest; None if there was none.

        Raises:
            BundleError: the file is not what the manifest says.
        """
        return self.read(RANGES_FILE) if RANGES_FILE in self.manifest.files else None

    def graph_path(self, stage: Stage) -> Path:
        """A file with that graph, for an engine that reads files itself.

        In a folder it is the bundle's own file; from an archive, a copy in the cache under ``digest``,
        which may be shared with other processes: do not change it. Where the cache cannot be written, a
        copy that is there as long as this object.

        Raises:
            BundleError: the file is not what the manifest says.
            OutputError: neither the cache nor a temporary folder can be written.
            ValueError: the stage has no graph.
        """
        name = _file_of(stage)
        if not isinstance(self._files, Folder):
            return self._extracted(name)
        if name not in self._checked:
            self.read(name)
        return self.path / name

    def read(self, name: str) -> bytes:
        """One of the manifest's files, checked against it; ``BundleError`` if it is another."""
        with about(self.path):
            return self._read(name)

    def _read(self, name: str) -> bytes:
        info = self.manifest.files[name]
        data = self._files.read(name, info.bytes)
        _check_size(name, len(data), info)
        found = hashlib.sha256(data).hexdigest()
        if found != info.sha256:
            raise BundleError(f"{name} has sha256 {found}, expected {info.sha256}", FIX)
        if name not in self._checked and any(
            name in (stage.file, stage.twin) for stage in self.manifest.stages
        ):
            check_self_contained(data, name)
        self._checked.add(name)
        return data

    def _extracted(self, name: str) -> Path:
        info = self.manifest.files[name]
        try:
            target = paths.cache_dir("bundles") / self.digest / name
        except UsageError as error:  # no home, no cache
            return self._aside(name, self.read(name), OutputError(error.message))
        if not _holds(target, info):
            data = self.read(name)
            try:
                make_folder(target.parent)
                write_file(target, data)
            except OutputError as error:
                # Windows does not replace a file that another process, faster than this, has opened
                if not _holds(target, info):
                    return self._aside(name, data, error)
        return target

    def _aside(self, name: str, data: bytes, why: OutputError) -> Path:
        """The file in a temporary folder, which goes with this object: a cache is a help, not a need."""
        if self._scratch is None:
            log.warning("%s; the model is unpacked for this run alone. %s", why.message, paths.SET_HOME)
            with explained(Path(tempfile.gettempdir()), paths.SET_HOME):
                self._scratch = tempfile.TemporaryDirectory(prefix="mrsep-deploy-bundle-")
        target = Path(self._scratch.name) / name
        write_file(target, data)
        return target


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Put the bundle's path in front of the message of a ``BundleError``."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", error.fix) from error


def _files_at(place: Path) -> Files:
    if os.path.isdir(place):
        return Folder(place)
    if place.suffix.lower() == ARCHIVE_SUFFIX and os.path.isfile(place):
        return Archive(place)
    found = "this is neither a folder nor a .zip" if os.path.lexists(place) else "there is nothing"
    fix = "Give a folder or .zip that `mrsep-deploy export` wrote."
    raise BundleError(f"{found}, expected a bundle", fix)


def _check_size(name: str, size: int, info: FileInfo) -> None:
    if size != info.bytes:
        raise BundleError(f"{name} has {size} bytes, expected {info.bytes}", FIX)


def _file_of(stage: Stage) -> str:
    if stage.file is None:
        raise ValueError(f"stage {stage.name!r} of kind {stage.kind} has no graph")
    return stage.file


def _holds(path: Path, info: FileInfo) -> bool:
    """Whether a file exists and has this content."""
    try:
        return path.stat().st_size == info.bytes and FileInfo.of(path.read_bytes()) == info
    except OSError:
        return False
