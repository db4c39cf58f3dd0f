"""A manifest as JSON text, and back.

``to_json`` writes for people: stable key order, indented, one line for what fits on one. ``from_json`` trusts
nothing: fields have the types and bounds that ``manifest`` gives them, and the whole must make sense
(``manifest_check``). ``from_json(to_json(m)) == m`` for every manifest it accepts, opened at a batch of one. The first
dimension of tensors is written ``"batch"``, and a fraction ``"39/5"``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from typing import Any

from mrsep_deploy.bundle.manifest import (
    BATCH,
    FORMAT,
    FORMAT_VERSION,
    Application,
    Branch,
    Manifest,
    ModelInfo,
    Stage,
    Transform,
)
from mrsep_deploy.bundle.manifest_check import FIX, check, check_model
from mrsep_deploy.errors import BundleError
from mrsep_deploy.files.strict_json import parse, pretty, raised_as, shown
from mrsep_deploy.files.typed_json import exactly

_OPTIONAL = {
    Manifest: ("float32", "gates", "licence"),
    Branch: ("transform",),
    Stage: ("file", "parameters", "macs", "twin"),
    Transform: ("delay",),
    Application: ("context",),
}
"""Fields that are left out where they are empty."""


def to_json(manifest: Manifest) -> str:
    """The manifest as text, ending in a newline.

    Raises:
        BundleError: a value in ``config``, ``checks`` or ``provenance`` that JSON cannot hold.
    """
    ordered = replace(manifest, files=dict(sorted(manifest.files.items())))
    tree = {"format": FORMAT, "format_version": FORMAT_VERSION, **_plain(ordered, "manifest")}
    for tensor in tree["tensors"]:
        tensor["shape"][0] = BATCH
    return pretty(tree) + "\n"


@raised_as(BundleError)
def from_json(text: str | bytes) -> Manifest:
    """The manifest that a text holds.

    Raises:
        BundleError: names the field, what was found and what was expected; for a manifest of another
            format version, the version that is read here.
    """
    tree = _of_this_version(parse(text, "manifest", FIX))
    _open_at_batch_one(tree.get("tensors"))
    manifest = exactly(tree, Manifest, "manifest", FIX, optional=sum(_OPTIONAL.values(), ()))
    check(manifest)
    return manifest


@raised_as(BundleError)
def require_model(model: ModelInfo) -> None:
    """Raise ``BundleError``, as reading a manifest would, if none can hold this model; ask before exporting."""
    check_model(exactly(_plain(model, "model"), ModelInfo, "model", FIX))


def _of_this_version(tree: object) -> dict[str, object]:
    """Returns the fields beyond the version: another one may differ in any of them."""
    found = tree.pop("format", None) if isinstance(tree, dict) else tree
    if not isinstance(tree, dict) or found != FORMAT:
        raise BundleError(
            f"manifest.format is {shown(found)}, expected {FORMAT!r}",
            "Give a folder or .zip that `mrsep-deploy export` wrote.",
        )
    version = tree.pop("format_version", None)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"manifest.format_version is {shown(version)}, expected {FORMAT_VERSION}", FIX)
    if version != FORMAT_VERSION:
        again = "Export the checkpoint again with this version."
        newer = "Upgrade mrsep-deploy, or export the checkpoint again with this version."
        raise BundleError(
            f"this bundle has format version {version}, this mrsep-deploy reads version {FORMAT_VERSION}",
            newer if version > FORMAT_VERSION else again,
        )
    return tree


def _open_at_batch_one(tensors: object) -> None:
    """Puts a number in place of the first dimension's name; what else is wrong with tensors is found by their type."""
    for index, tensor in enumerate(tensors if isinstance(tensors, list) else ()):
        shape = tensor.get("shape") if isinstance(tensor, dict) else None
        if isinstance(shape, list) and shape:
            if shape[0] != BATCH:
                where = f"manifest.tensors[{index}].shape"
                raise BundleError(f"{where} is {shown(shape)}, expected {BATCH!r} and whole numbers", FIX)
            shape[0] = 1


def _plain(value: object, where: str) -> Any:
    """Returns the value with nothing in it but what JSON knows."""
    if is_dataclass(value):
        optional = _OPTIONAL.get(type(value), ())
        names = [each.name for each in fields(value)]
        value = {name: getattr(value, name) for name in names if getattr(value, name) or name not in optional}
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
