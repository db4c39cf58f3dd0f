"""Writing a bundle, as a folder or as one ``.zip``: it appears whole under its name, or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

from mrsep_deploy.bundle.manifest import FORMAT, FileInfo, Manifest
from mrsep_deploy.bundle.manifest_check import FIX, MANIFEST_FILE
from mrsep_deploy.bundle.manifest_json import from_json, to_json
from mrsep_deploy.bundle.places import Folder, write_zip
from mrsep_deploy.bundle.read import ARCHIVE_SUFFIX, RANGES_FILE, Bundle
from mrsep_deploy.errors import MrsepError, OutputError, UsageError
from mrsep_deploy.files.parts import explained, make_folder, new_folder
from mrsep_deploy.files.strict_json import MAX_BYTES, parse

OVERWRITE = "allow overwriting: --overwrite"


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
    described = {name: FileInfo.of(data) for name, data in files.items()}
    manifest_bytes = to_json(replace(manifest, files=described)).encode()
    from_json(manifest_bytes)
    check_bundle_place(place, overwrite=overwrite)
    with new_folder(place, {MANIFEST_FILE: manifest_bytes, **files}) as written:
        Bundle.open(written)
    return Bundle.open(place, verify=False)


def rewrite_bundle(bundle: Bundle, manifest: Manifest, more: Mapping[str, bytes] | None = None) -> Bundle:
    """Write a bundle's folder anew, with another manifest, and files beyond those it has or in their place.

    Raises:
        UsageError: the bundle is an archive.
        OutputError: it cannot be written; nothing has changed then.
    """
    require_folder(bundle)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    return write_bundle(bundle.path, manifest, {**files, **(more or {})}, overwrite=True)


def require_folder(bundle: Bundle) -> None:
    """Raise ``UsageError`` for an archive, which cannot be added to."""
    if bundle.path.suffix.lower() == ARCHIVE_SUFFIX and bundle.path.is_file():
        raise UsageError(f"{bundle.path} is an archive, expected a folder to store it in", "Unpack it first.")


def check_bundle_place(directory: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise ``OutputError``, as ``write_bundle`` would, if it may not take this place."""
    place = Path(os.path.abspath(directory))
    with explained(place):
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
                raise OutputError(
                    f"{place} holds {name!r}, which is no part of a bundle", "Move it away first."
                )


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
    files = ((name, bundle.read(name)) for name in sorted(bundle.manifest.files))
    write_zip(place, chain([(MANIFEST_FILE, bundle.manifest_bytes)], files), compress)
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


def _looks_like_bundle(place: Path) -> bool:
    """Whether its manifest says so, of whatever version and in whatever state the rest is."""
    try:
        tree = parse(Folder(place).read(MANIFEST_FILE, MAX_BYTES), "manifest", FIX)
    except MrsepError:
        return False
    return isinstance(tree, dict) and tree.get("format") == FORMAT
