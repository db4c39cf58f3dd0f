"""Ranges of every tensor of a bundle's graphs, as a calibration measured them, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Annotated

import msgspec

from mrsep_deploy.bundle import ARCHIVE_SUFFIX, RANGES_FILE, Bundle, write_bundle
from mrsep_deploy.errors import BundleError, UsageError
from mrsep_deploy.files.strict_json import Record, parse, raised_as, typed

FORMAT = "mrsep-deploy ranges"
FORMAT_VERSION = 1
FIX = "Calibrate again: mrsep-deploy verify BUNDLE --calibrate."

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Magnitude = Annotated[float, msgspec.Meta(ge=0)]
_Numbers = tuple[_Magnitude, _Magnitude, _Magnitude, _Magnitude, _Magnitude, _Magnitude]
"""A range in the file, in the order of :class:`Range`."""


@dataclass(frozen=True)
class Range:
    """The range of one tensor over all that was run.

    Attributes:
        largest: the largest magnitude.
        smallest: the smallest that is not zero, of a sample of the values; 0 if all are.
        rms: over all segments.
        quietest: RMS of the quietest segment in which it is not zero throughout; 0 if there is none.
        tiny: share of the sample that is not zero, but below float16's smallest normal number.
        amplification: for a convolution's or a matrix product's result, how much it amplifies relative
            rounding errors of what it multiplies, by cancellation; 0 for other tensors.
    """

    largest: float
    smallest: float
    rms: float
    quietest: float
    tiny: float
    amplification: float = 0.0


Ranges = Mapping[str, Mapping[str, Range]]
"""By stage, by tensor."""


@dataclass(frozen=True)
class Calibration:
    """What was measured, and on what.

    Attributes:
        signals: names of the tracks, and how many batches of segments of each ran.
        ranges: by stage, by tensor of its graph.
    """

    signals: Mapping[str, int]
    ranges: Ranges


def store(bundle: Bundle, calibration: Calibration) -> Bundle:
    """Writes a calibration into a bundle's folder, in place of an older one.

    Raises:
        UsageError: the bundle is an archive.
        OutputError: it cannot be written; nothing has changed then.
    """
    require_folder(bundle)
    files = {stage.file: bundle.graph_bytes(stage) for stage in bundle.manifest.stages if stage.file}
    files[RANGES_FILE] = to_json(calibration).encode()
    return write_bundle(bundle.path, replace(bundle.manifest, files={}), files, overwrite=True)


def require_folder(bundle: Bundle) -> None:
    """Raises ``UsageError`` for an archive, which cannot be added to."""
    if bundle.path.suffix.lower() == ARCHIVE_SUFFIX and bundle.path.is_file():
        raise UsageError(
            f"{bundle.path} is an archive, expected a folder to store the ranges in", "Unpack it first."
        )


def load(bundle: Bundle) -> Calibration | None:
    """Returns the calibration that a bundle holds; None if it was never calibrated.

    Raises:
        BundleError: the file is damaged, or of another format version.
    """
    data = bundle.ranges_bytes()
    if data is None:
        return None
    return from_json(data)


def to_json(calibration: Calibration) -> str:
    """Returns the text of the file, with a line for every tensor."""
    lines = [
        f'  "format": {json.dumps(FORMAT)}',
        f'  "format_version": {FORMAT_VERSION}',
        f'  "signals": {json.dumps(dict(calibration.signals), ensure_ascii=False)}',
        f'  "stages": {_stages(calibration.ranges)}',
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _stages(ranges: Ranges) -> str:
    stages = []
    for stage, tensors in ranges.items():
        rows = [
            f"      {json.dumps(name)}: {json.dumps([float(f'{value:.6g}') for value in astuple(found)])}"
            for name, found in tensors.items()
        ]
        stages.append(f"    {json.dumps(stage)}: {{\n" + ",\n".join(rows) + "\n    }")
    return "{\n" + ",\n".join(stages) + "\n  }"


@raised_as(BundleError)
def from_json(text: str | bytes) -> Calibration:
    """Returns the calibration that a text holds.

    Raises:
        BundleError: names what was found and what was expected.
    """
    record = Record(
        parse(text, RANGES_FILE, FIX), RANGES_FILE, FIX, ("format", "format_version", "signals", "stages")
    )
    record.choice("format", (FORMAT,))
    record.integer("format_version", FORMAT_VERSION, FORMAT_VERSION)
    signals, stages = record.mapping("signals"), record.mapping("stages")
    found = typed(stages, dict[str, dict[str, _Numbers]], f"{RANGES_FILE}.stages", FIX)
    return Calibration(
        typed(signals, dict[str, _Count], f"{RANGES_FILE}.signals", FIX),
        {stage: {name: Range(*each) for name, each in tensors.items()} for stage, tensors in found.items()},
    )
