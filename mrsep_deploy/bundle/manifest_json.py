"""A manifest as JSON text, and back.

``to_json`` writes for people: stable key order, indented, one line for what fits on one. ``from_json``
trusts nothing: every field has a type and bounds, and the whole must make sense (``manifest_check``).
``from_json(to_json(m)) == m`` for every manifest it accepts, opened at a batch of one. A fraction is written
``"39/5"``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, get_args

import msgspec

from mrsep_deploy.bundle.manifest import (
    BATCH,
    FORMAT,
    FORMAT_VERSION,
    STAGE_KINDS,
    Application,
    Branch,
    Edges,
    Envelope,
    FileInfo,
    FusionShares,
    Last,
    Layout,
    Manifest,
    ModelInfo,
    Normalisation,
    Padding,
    Scale,
    Stage,
    TensorSpec,
    Transform,
    Weights,
    Window,
)
from mrsep_deploy.bundle.manifest_check import FIX, MAX_FILE_BYTES, check, check_file_name, check_model
from mrsep_deploy.errors import BundleError
from mrsep_deploy.files.record import Record, as_numbers
from mrsep_deploy.files.strict_json import parse, pretty, raised_as, shown
from mrsep_deploy.files.typed_json import NAME, typed

MAX_COUNT = 2**63 - 1
MAX_SAMPLES = 2**31
MAX_WINDOW = 2**20
MAX_OVERLAP = 0.99
DTYPES = ("float32", "float16", "float64", "int32", "int64")
FUSED_AT = ("bottleneck", "output")

_Name = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME.pattern}\Z")]
_Patterns = Annotated[tuple[Annotated[str, msgspec.Meta(max_length=512)], ...], msgspec.Meta(max_length=256)]
_FLOAT32 = dict[_Name, Annotated[dict[_Name, _Patterns], msgspec.Meta(max_length=64)]]
_Size = Annotated[int, msgspec.Meta(ge=1, le=MAX_SAMPLES)]
_FRACTION = re.compile(r"[0-9]{1,12}(/0*[1-9][0-9]{0,11})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def to_json(manifest: Manifest) -> str:
    """The manifest as text, ending in a newline.

    Raises:
        BundleError: a value in ``config``, ``checks`` or ``provenance`` that JSON cannot hold.
    """
    return pretty(_plain(_tree(manifest), "manifest")) + "\n"


@raised_as(BundleError)
def from_json(text: str) -> Manifest:
    """The manifest that a text holds.

    Raises:
        BundleError: names the field, what was found and what was expected; for a manifest of another
            format version, the version that is read here.
    """
    tree = parse(text, "manifest", FIX)
    _check_version(tree)
    top = Record(tree, "manifest", FIX, _TOP, ("float32",))
    manifest = Manifest(
        name=top.name("name"),
        model=_model(top.mapping("model")),
        branches=tuple(_branch(item, where) for where, item in top.items("branches", 1, 16)),
        tensors=tuple(_tensor(item, where) for where, item in top.items("tensors", 1, 1024)),
        stages=tuple(_stage(item, where) for where, item in top.items("stages", 1, 64)),
        layout=top.choice("layout", get_args(Layout)),
        opset=top.integer("opset", 1, 1000),
        precision=top.name("precision"),
        files=_files(top.mapping("files")),
        float32=typed(top.mapping("float32"), _FLOAT32, "float32", FIX) if "float32" in top else {},
        application=_application(top.mapping("application")),
        fusion=tuple(_shares(item, where) for where, item in top.items("fusion", 0, 16)),
        checks=top.mapping("checks"),
        provenance=top.mapping("provenance"),
    )
    check(manifest)
    return manifest


@raised_as(BundleError)
def require_model(model: ModelInfo) -> None:
    """Raise ``BundleError``, as reading a manifest would, if none can hold this model; ask before exporting."""
    check_model(_model(_plain(vars(model), "model")))


_TOP = (
    *("format", "format_version", "name", "model", "layout", "opset", "precision"),
    *("application", "branches", "tensors", "stages", "fusion", "files", "checks", "provenance"),
)


def _check_version(tree: object) -> None:
    """Other versions may differ in anything else, so this comes before every other field."""
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        found = tree.get("format") if isinstance(tree, dict) else tree
        raise BundleError(
            f"manifest.format is {shown(found)}, expected {FORMAT!r}",
            "Give a folder or .zip that `mrsep-deploy export` wrote.",
        )
    version = tree.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"manifest.format_version is {shown(version)}, expected {FORMAT_VERSION}", FIX)
    if version != FORMAT_VERSION:
        newer = version > FORMAT_VERSION
        raise BundleError(
            f"this bundle has format version {version}, this mrsep-deploy reads version {FORMAT_VERSION}",
            "Upgrade mrsep-deploy, or export the checkpoint again with this version."
            if newer
            else "Export the checkpoint again with this version.",
        )


def _model(value: object) -> ModelInfo:
    keys = ("family", "sources", "sample_rate", "audio_channels", "segment", "segment_samples")
    record = Record(value, "model", FIX, (*keys, "trained", "parameters", "config"))
    return ModelInfo(
        family=record.name("family"),
        sources=record.names("sources", 1, 64),
        sample_rate=record.integer("sample_rate", 1000, 768_000),
        audio_channels=record.integer("audio_channels", 1, 64),
        segment=Fraction(record.text("segment", _FRACTION, 'seconds as a fraction, "39/5"')),
        segment_samples=record.integer("segment_samples", 1, MAX_SAMPLES),
        trained=record.flag("trained"),
        parameters=record.integer("parameters", 0, MAX_COUNT),
        config=record.mapping("config"),
    )


def _branch(value: object, where: str) -> Branch:
    record = Record(value, where, FIX, ("name", "gains", "normalise"), ("transform",))
    return Branch(
        name=record.name("name"),
        gains=record.numbers("gains", 64),
        transform=_transform(record.mapping("transform"), where) if "transform" in record else None,
        normalise=record.flag("normalise"),
    )


def _transform(value: object, where: str) -> Transform:
    sizes = ("n_fft", "hop", "frames", "bins", "offset", "after")
    record = Record(value, f"{where}.transform", FIX, (*sizes, "window", "scale", "padding", "envelope"))
    return Transform(
        n_fft=record.integer("n_fft", 2, MAX_WINDOW),
        hop=record.integer("hop", 1, MAX_WINDOW),
        frames=record.integer("frames", 1, MAX_SAMPLES),
        bins=record.integer("bins", 1, MAX_WINDOW),
        offset=record.integer("offset", 0, MAX_WINDOW),
        after=record.integer("after", 0, 2 * MAX_WINDOW),
        window=record.choice("window", get_args(Window)),
        scale=record.choice("scale", get_args(Scale)),
        padding=record.choice("padding", get_args(Padding)),
        envelope=record.choice("envelope", get_args(Envelope)),
    )


def _tensor(value: object, where: str) -> TensorSpec:
    record = Record(value, where, FIX, ("name", "shape", "dtype"))
    first, *others = (item for _, item in record.items("shape", 1, 16))
    if first != BATCH:
        record.wrong("shape", f"{BATCH!r} and whole numbers")
    sizes = typed(others, tuple[_Size, ...], f"{where}.shape", FIX)
    if math.prod(sizes) > MAX_SAMPLES:
        record.wrong("shape", f"at most {MAX_SAMPLES} elements")
    return TensorSpec(name=record.name("name"), shape=(1, *sizes), dtype=record.choice("dtype", DTYPES))


def _application(value: object) -> Application:
    keys = ("normalise", "weights", "fade", "overlap", "edges", "last")
    record = Record(value, "application", FIX, keys)
    return Application(
        normalise=record.choice("normalise", get_args(Normalisation)),
        weights=record.choice("weights", get_args(Weights)),
        fade=record.integer("fade", 0, MAX_SAMPLES),
        overlap=record.number("overlap", 0, MAX_OVERLAP),
        edges=record.choice("edges", get_args(Edges)),
        last=record.choice("last", get_args(Last)),
    )


def _stage(value: object, where: str) -> Stage:
    keys = ("name", "kind", "branch", "inputs", "outputs")
    record = Record(value, where, FIX, keys, ("file", "parameters", "macs"))
    return Stage(
        name=record.name("name"),
        kind=record.choice("kind", STAGE_KINDS),
        branch=record.name("branch"),
        inputs=record.names("inputs", 1, 256),
        outputs=record.names("outputs", 1, 256),
        file=record.name("file") if "file" in record else None,
        parameters=record.integer("parameters", 0, MAX_COUNT) if "parameters" in record else 0,
        macs=record.integer("macs", 0, MAX_COUNT) if "macs" in record else 0,
    )


def _shares(value: object, where: str) -> FusionShares:
    record = Record(value, where, FIX, ("where", "sources", "weights"))
    rows = tuple(as_numbers(row, at, FIX) for at, row in record.items("weights", 1, 64))
    if not 1 <= len(rows[0]) <= 16 or any(len(row) != len(rows[0]) for row in rows):
        record.wrong("weights", "rows of one length, 1 to 16 numbers")
    sources = record.names("sources", 0, 64)
    if len(rows) != max(1, len(sources)):
        record.wrong("weights", f"{max(1, len(sources))} rows")
    return FusionShares(where=record.choice("where", FUSED_AT), sources=sources, weights=rows)


def _files(found: Mapping[str, object]) -> dict[str, FileInfo]:
    if len(found) > 256:
        raise BundleError(f"manifest.files has {len(found)} entries, expected at most 256", FIX)
    return {name: _file(name, value) for name, value in found.items()}


def _file(name: str, value: object) -> FileInfo:
    check_file_name(name)
    record = Record(value, f"files[{name!r}]", FIX, ("sha256", "bytes"))
    return FileInfo(
        sha256=record.text("sha256", _SHA256, "64 hexadecimal digits in lower case"),
        bytes=record.integer("bytes", 0, MAX_FILE_BYTES),
    )


def _tree(manifest: Manifest) -> dict[str, object]:
    """The manifest as nested dicts and tuples, in the order people read it."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": manifest.name,
        "model": vars(manifest.model),
        "layout": manifest.layout,
        "opset": manifest.opset,
        "precision": manifest.precision,
        **({"float32": manifest.float32} if manifest.float32 else {}),
        "application": vars(manifest.application),
        "branches": [_branch_tree(branch) for branch in manifest.branches],
        "tensors": [vars(t) | {"shape": (BATCH, *t.shape[1:])} for t in manifest.tensors],
        "stages": [_stage_tree(stage) for stage in manifest.stages],
        "fusion": [vars(shares) for shares in manifest.fusion],
        "files": {name: vars(manifest.files[name]) for name in sorted(manifest.files)},
        "checks": manifest.checks,
        "provenance": manifest.provenance,
    }


def _branch_tree(branch: Branch) -> dict[str, object]:
    tree = {"name": branch.name, "gains": branch.gains, "normalise": branch.normalise}
    return tree if branch.transform is None else {**tree, "transform": vars(branch.transform)}


def _stage_tree(stage: Stage) -> dict[str, object]:
    tree = dict(vars(stage))
    if stage.file is None:
        del tree["file"]
    for count in ("parameters", "macs"):
        if tree[count] == 0:
            del tree[count]
    return tree


def _plain(value: object, where: str) -> object:
    """The value with nothing in it but what JSON knows."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise BundleError(f"{where} has a key that is not text")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Fraction):
        return str(value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if finite and (value is None or isinstance(value, (str, bool, int, float))):
        return value
    raise BundleError(f"{where} is {shown(value)}, expected plain text, finite numbers, lists or mappings")
