"""A published model, from its name to a registered bundle: its files got and verified, exported, and only then there.

A model of one checkpoint becomes a bundle; one of several becomes a folder with a bundle of each and ``bag.toml``,
which says how much each counts:

    models/NAME/manifest.json ...                        one checkpoint
    models/NAME/bag.toml  models/NAME/f7e0c4bc/ ...      several
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from mrsep_deploy.bundle import Bundle, registry
from mrsep_deploy.bundle.bag_file import BAG_FILE, bag_in, read_bag_file
from mrsep_deploy.bundle.licence import Licence, of_all
from mrsep_deploy.bundle.manifest import Layout
from mrsep_deploy.bundle.provenance import Provenance
from mrsep_deploy.bundle.published import PublishedModel, find, published
from mrsep_deploy.bundle.write import check_bundle_place
from mrsep_deploy.errors import BundleError, ExportError, FormatError, OutputError, UsageError
from mrsep_deploy.export import api
from mrsep_deploy.export.families import variants
from mrsep_deploy.fetching.download import Progress, alone, check_mirror, download
from mrsep_deploy.files import paths
from mrsep_deploy.files.abandoned import sweep_part_folders
from mrsep_deploy.files.parts import explained, new_folder

Reporter = Callable[[], AbstractContextManager[Progress]]


def unseen() -> AbstractContextManager[Progress]:
    """A reporter that tells nobody."""
    return nullcontext(lambda _what, _done, _total: None)


@dataclass(frozen=True)
class Fetched:
    """A published model that is registered now.

    Attributes:
        name: that it is registered under.
        path: the folder of its bundle, or of the bag with the bundles of its models.
        models: the bundles.
        was_there: it had been fetched before, and nothing was done.
    """

    name: str
    path: Path
    licence: Licence
    models: tuple[Bundle, ...]
    was_there: bool = False


def fetch(
    published_name: str,
    *,
    name: str | None = None,
    mirror: str | None = None,
    layout: Layout = "split",
    overwrite: bool = False,
    downloading: Reporter = unseen,
    exporting: Reporter = unseen,
) -> Fetched:
    """Get a published model, export it, and register it; a model that is there already stays as it is.

    Args:
        published_name: one of ``published``.
        name: that it gets here; the same by default.
        mirror: an address or a folder that has its files by their names.
        layout: of its bundles.
        overwrite: make it anew if it is there.
        downloading, exporting: give what is told of progress, in bytes and in steps.

    Raises:
        UsageError: no such model or mirror, or the name belongs to another model, or to this one otherwise exported.
        ExportError: an extra is not installed, or this version cannot export the model's family.
        FetchError, OutputError: as ``download``.
        CheckpointError: a checkpoint cannot be read.
    """
    model = find(published_name)
    name = registry.validate_name(published_name if name is None else name)
    target = paths.models_dir() / name
    licence = published().licence(model)
    known = _registered(name)
    if known is not None and not overwrite:
        found = _as_fetched(known, model)
        if found is None:
            raise UsageError(
                f"the name {name} belongs to another model, at {known}",
                f"Choose a name with --name, or remove that model: mrsep-deploy models remove {name}",
            )
        _require_same(name, found, model, layout)
        given = of_all(bundle.manifest.licence for bundle in found)
        return Fetched(name, known, given, found, was_there=True)
    registry.check_free(name, target)
    several = len(model.checkpoints) > 1
    (check_bag_place if several else check_bundle_place)(target, overwrite=overwrite)
    _require_family(published_name, model)
    check_mirror(mirror)
    api.require_extra("fetching a model")
    with alone(published_name):
        with downloading() as progress:
            files = download(published_name, model.files, mirror, progress)
        checkpoints = [
            path for path, file in zip(files, model.files, strict=True) if file in model.checkpoints
        ]
        with exporting() as progress:
            if several:
                bundles = _export_bag(checkpoints, model, target, layout, progress)
            else:
                bundle = api.export(
                    checkpoints[0],
                    name=name,
                    layout=layout,
                    licence=licence,
                    config=next((path for path in files if path not in checkpoints), None),
                    segment=model.segment,
                    overwrite=overwrite,
                    progress=progress,
                )
                bundles = (bundle,)
    return Fetched(name, target, licence, bundles)


def check_bag_place(target: Path, *, overwrite: bool) -> None:
    """Raise ``OutputError`` if a bag may not take this place: what is there and is replaced is deleted whole."""
    with explained(target):
        if not target.is_symlink() and not target.exists():
            return
        if target.is_symlink() or not target.is_dir():
            raise OutputError(f"{target} is no folder, expected a place for one", "Move it away first.")
        for entry in sorted(target.iterdir()):
            if entry.name != BAG_FILE:
                check_bundle_place(entry, overwrite=True)
    if not overwrite:
        raise OutputError(f"{target} is there already", "Replace it with --overwrite.")


def _require_family(name: str, model: PublishedModel) -> None:
    missing = [family for family in model.families if family not in variants()]
    if missing:
        raise ExportError(
            f"{name} has models of {' and '.join(missing)}, which this version cannot export",
            "Upgrade mrsep-deploy, or choose another model: mrsep-deploy models list --all",
        )


def _registered(name: str) -> Path | None:
    """Where the model of that name is; None if there is none, or nothing is left of it."""
    for model in registry.list_models():
        if model.name == name and not model.shipped:
            return model.path if model.status == "ok" else None
    return None


def _as_fetched(path: Path, model: PublishedModel) -> tuple[Bundle, ...] | None:
    """The bundles at a place, if they are of the checkpoints of this model, and of a bag with its weights."""
    try:
        bag = bag_in(path)
        file = None if bag is None else read_bag_file(bag)
        places = [path] if file is None else [path / name for name in file.models]
        bundles = tuple(Bundle.open(place, verify=False) for place in places)
    except (BundleError, FormatError):
        return None
    hashes = [Provenance.read(bundle.manifest.provenance).sha256 for bundle in bundles]
    same_weights = file is None or file.weights == model.weights
    return bundles if same_weights and hashes == [file.sha256 for file in model.checkpoints] else None


def _require_same(name: str, bundles: Sequence[Bundle], model: PublishedModel, layout: Layout) -> None:
    """Refuses to take for what was asked what was exported otherwise from the same checkpoints."""
    for manifest in (bundle.manifest for bundle in bundles):
        segment = manifest.model.segment if model.segment is None else model.segment
        has = (manifest.layout, manifest.precision, f"segments of {float(manifest.model.segment):g} s")
        wanted = (layout, "float32", f"segments of {float(segment):g} s")
        other = [pair for pair in zip(has, wanted, strict=True) if pair[0] != pair[1]]
        if other:
            raise UsageError(
                f"{name} is there already with {other[0][0]}, expected {other[0][1]}",
                "Make it anew with --overwrite, or choose another name with --name.",
            )


def _export_bag(
    checkpoints: Sequence[Path],
    model: PublishedModel,
    target: Path,
    layout: Layout,
    progress: Progress,
) -> tuple[Bundle, ...]:
    """Exports all models into one folder, which appears whole, and registers it."""
    from mrsep_deploy.export.exporter import ExportOptions, export_model
    from mrsep_deploy.export.load import load_model

    options = ExportOptions(layout, (), published().licence(model))
    names = [path.stem.partition("-")[0] for path in checkpoints]
    bag = _bag_text(names, model)
    sweep_part_folders(target)
    with new_folder(target, {BAG_FILE: bag}) as part:
        digest = hashlib.sha256(bag)
        for number, (name, checkpoint) in enumerate(zip(names, checkpoints, strict=True), 1):

            def report(
                what: str, done: int, total: int, which: str = f"{number}/{len(names)} {name}"
            ) -> None:
                progress(f"{which}: {what}", done, total)

            loaded = load_model(checkpoint, segment=model.segment)
            bundle = export_model(loaded, name, part / name, options, progress=report)
            digest.update(bundle.digest.encode())
        if any(not (part / name).is_dir() for name in names):
            raise OutputError(f"{part} lost models while it was made", "Try again.")
    registry.register_place(target, digest.hexdigest(), target.name)
    return tuple(Bundle.open(target / name, verify=False) for name in names)


def _bag_text(names: Sequence[str], model: PublishedModel) -> bytes:
    """The file of the bag (``bundle.bag_file``)."""
    quoted = ", ".join(f'"{name}"' for name in names)
    lines = [f"models = [{quoted}]"]
    if model.weights is not None:
        lines.append(f"weights = {[list(row) for row in model.weights]}")
    return ("\n".join(lines) + "\n").encode()
