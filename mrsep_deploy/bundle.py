"""A bundle: a folder, or a ``.zip`` of it, with a manifest and the graphs that it lists.

    NAME/manifest.json        what the model is made of, and the sha256 of every file
    NAME/encoder.2048.onnx    ...

No byte leaves a bundle unchecked: a graph is handed out only if its size and hash are the manifest's and
it refers to no file outside. Written bundles appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from . import paths
from .archive import Archive, write_zip
from .atomic import explained, make_folder, new_folder, write_file
from .bundle_files import Files, Folder
from .errors import BundleError, MrsepError, OutputError, UsageError
from .manifest import FORMAT, FileInfo, Manifest, Stage
from .manifest_check import FIX, MANIFEST_FILE
from .manifest_json import from_json, to_json
from .onnx_wire import check_self_contained
from .strict_json import MAX_BYTES, parse

log = logging.getLogger(__name__)

ARCHIVE_SUFFIX = ".zip"
RANGES_FILE = "ranges.json"
"""The one file of a bundle that is no graph: what a calibration has measured."""
OVERWRITE = "allow overwriting: --overwrite"


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
        self.manifest = _read_manifest(manifest_bytes)
        self.digest = hashlib.sha256(manifest_bytes).hexdigest()
        self.manifest_bytes = manifest_bytes
        self._files = files
        self._checked: set[str] = set()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

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
        with _about(place):
            files = _files_at(place)
            bundle = cls(place, files.read(MANIFEST_FILE, MAX_BYTES), files)
            for name, info in bundle.manifest.files.items():
                _check_size(name, files.size(name), info)
                if verify:
                    bundle._read(name)
        return bundle

    def graph_bytes(self, stage: Stage) -> bytes:
        """The ONNX graph of a stage of kind ``graph``, checked against the manifest.

        Raises:
            BundleError: the file is not what the manifest says.
            ValueError: the stage has no graph.
        """
        with _about(self.path):
            return self._read(_file_of(stage))

    def ranges_bytes(self) -> bytes | None:
        """What a calibration has stored, checked against the manifest; None if there was none.

        Raises:
            BundleError: the file is not what the manifest says.
        """
        if RANGES_FILE not in self.manifest.files:
            return None
        with _about(self.path):
            return self._read(RANGES_FILE)

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
        with _about(self.path):
            if isinstance(self._files, Folder):
                if name not in self._checked:
                    self._read(name)
                return self.path / name
            return self._extracted(name)

    def _read(self, name: str) -> bytes:
        info = self.manifest.files[name]
        data = self._files.read(name, info.bytes)
        _check_size(name, len(data), info)
        found = hashlib.sha256(data).hexdigest()
        if found != info.sha256:
            raise BundleError(f"{name} has sha256 {found}, expected {info.sha256}", FIX)
        if name not in self._checked and any(stage.file == name for stage in self.manifest.stages):
            check_self_contained(data, name)
        self._checked.add(name)
        return data

    def _extracted(self, name: str) -> Path:
        info = self.manifest.files[name]
        try:
            target = paths.cache_dir("bundles") / self.digest / name
        except UsageError as error:  # no home, no cache
            return self._aside(name, self._read(name), OutputError(error.message))
        if not _holds(target, info):
            data = self._read(name)
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


def write_bundle(
    directory: str | os.PathLike[str], manifest: Manifest, files: Mapping[str, bytes], *, overwrite: bool
) -> Bundle:
    """Write a bundle's folder and open it.

    Args:
        directory: the folder to be. An empty one is taken; a bundle is replaced if ``overwrite``, after
            the new one is complete; anything else stays.
        manifest: what to say of the model; ``files`` is filled in here.
        files: the graphs by file name.

    Raises:
        BundleError: the manifest breaks its own rules, or a graph is not self-contained.
        OutputError: the place is taken or cannot be written. Nothing has changed then.
    """
    place = Path(os.path.abspath(directory))
    described = {name: _describe(data) for name, data in files.items()}
    manifest_bytes = to_json(replace(manifest, files=described)).encode()
    _read_manifest(manifest_bytes)
    check_place(place, overwrite=overwrite)
    with new_folder(place, {MANIFEST_FILE: manifest_bytes, **files}) as written:
        Bundle.open(written)
    return Bundle.open(place, verify=False)


def check_place(directory: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise ``OutputError``, as ``write_bundle`` would, if it may not take this place."""
    place = Path(os.path.abspath(directory))
    with explained(place):
        _check_place(place, overwrite)


def write_archive(
    bundle: Bundle, target: str | os.PathLike[str], overwrite: bool = False, compress: bool = False
) -> Path:
    """Write a bundle as one ``.zip``, which has the same digest.

    Stored, equal bundles give equal bytes; with ``compress`` they are fewer, and depend on the version of zlib.

    Raises:
        UsageError: ``target`` does not end in ``.zip``.
        OutputError: the place is taken or cannot be written; nothing is left behind.
    """
    place = Path(os.path.abspath(target))
    check_archive_place(target, overwrite=overwrite)
    make_folder(place.parent)
    write_zip(place, _members(bundle), compress)
    return place


def check_archive_place(target: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise, as ``write_archive`` would, if it may not take this place."""
    place = Path(os.path.abspath(target))
    if place.suffix.lower() != ARCHIVE_SUFFIX:
        raise UsageError(f"{target} does not end in .zip", f"Name it {place.stem}.zip.")
    if place.is_dir():
        raise OutputError(f"{place} is a folder, expected a place for a file", "Choose another name.")
    if os.path.lexists(place) and not overwrite:
        raise OutputError(f"{place} exists", f"Choose another place, or {OVERWRITE}.")


def _members(bundle: Bundle) -> Iterator[tuple[str, bytes]]:
    yield MANIFEST_FILE, bundle.manifest_bytes
    for name in sorted(bundle.manifest.files):
        with _about(bundle.path):
            data = bundle._read(name)
        yield name, data


@contextmanager
def _about(path: Path) -> Iterator[None]:
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


def _read_manifest(data: bytes) -> Manifest:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{MANIFEST_FILE} is not UTF-8 text: {error}", FIX) from error
    return from_json(text)


def _check_size(name: str, size: int, info: FileInfo) -> None:
    if size != info.bytes:
        raise BundleError(f"{name} has {size} bytes, expected {info.bytes}", FIX)


def _file_of(stage: Stage) -> str:
    if stage.file is None:
        raise ValueError(f"stage {stage.name!r} of kind {stage.kind} has no graph")
    return stage.file


def _describe(data: bytes) -> FileInfo:
    return FileInfo(hashlib.sha256(data).hexdigest(), len(data))


def _holds(path: Path, info: FileInfo) -> bool:
    """Whether a file exists and has this content."""
    try:
        return path.stat().st_size == info.bytes and _describe(path.read_bytes()) == info
    except OSError:
        return False


def _check_place(place: Path, overwrite: bool) -> None:
    """Raise unless a new folder may take this place."""
    if place.is_symlink():
        raise OutputError(f"{place} is a link, expected a place for a folder", "Name the folder itself.")
    if not place.exists():
        return
    if not place.is_dir():
        raise OutputError(f"{place} is a file, expected a place for a folder", "Choose another place.")
    entries = sorted(entry.name for entry in place.iterdir())
    if not entries:
        return
    if not _looks_like_bundle(place):
        raise OutputError(f"{place} is a folder with other things in it", "Choose another place.")
    if not overwrite:
        raise OutputError(f"{place} already holds a bundle", f"Choose another place, or {OVERWRITE}.")
    for name in entries:
        # the old folder is deleted whole, so nothing of the user's may be in it
        ours = name in (MANIFEST_FILE, RANGES_FILE) or name.endswith(".onnx") or name.startswith(".")
        if not ours:
            raise OutputError(f"{place} holds {name!r}, which is no part of a bundle", "Move it away first.")


def _looks_like_bundle(place: Path) -> bool:
    """Whether its manifest says so, of whatever version and in whatever state the rest is."""
    try:
        text = Folder(place).read(MANIFEST_FILE, MAX_BYTES).decode("utf-8")
        tree = parse(text, "manifest", FIX)
    except (MrsepError, UnicodeDecodeError):
        return False
    return isinstance(tree, dict) and tree.get("format") == FORMAT
