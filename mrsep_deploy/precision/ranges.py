"""Ranges of every tensor of a bundle's graphs, as a calibration measured them, and the file that keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from mrsep_deploy.bundle import RANGES_FILE, Bundle, rewrite_bundle
from mrsep_deploy.errors import BundleError
from mrsep_deploy.files.strict_json import pretty, raised_as
from mrsep_deploy.files.typed_json import document

_HEADER = {"format": "mrsep-deploy ranges", "format_version": 1}
FIX = "Calibrate again: mrsep-deploy verify BUNDLE --calibrate."

_Magnitude = Annotated[float, msgspec.Meta(ge=0)]


class Range(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The range of one tensor over all that was run; a list of its numbers in the file.

    Attributes:
        largest: the largest magnitude.
        smallest: the smallest that is not zero, of a sample of the values; 0 if all are.
        rms: over all segments.
        quietest: RMS of the quietest segment in which it is not zero throughout; 0 if there is none.
        tiny: share of the sample that is not zero, but below float16's smallest normal number.
        amplification: for a convolution's or a matrix product's result, how much it amplifies relative
            rounding errors of what it multiplies, by cancellation; 0 for other tensors.
    """

    largest: _Magnitude
    smallest: _Magnitude
    rms: _Magnitude
    quietest: _Magnitude
    tiny: _Magnitude
    amplification: _Magnitude


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


@dataclass(frozen=True)
class _File:
    signals: dict[str, Annotated[int, msgspec.Meta(ge=1)]]
    stages: dict[str, dict[str, Range]]


def store(bundle: Bundle, calibration: Calibration) -> Bundle:
    """Writes a calibration into a bundle's folder, in place of an older one.

    Raises:
        UsageError: the bundle is an archive.
        OutputError: it cannot be written; nothing has changed then.
    """
    return rewrite_bundle(bundle, bundle.manifest, {RANGES_FILE: to_json(calibration)})


def load(bundle: Bundle) -> Calibration | None:
    """Returns the calibration that a bundle holds; None if it was never calibrated.

    Raises:
        BundleError: the file is damaged, or of another format version.
    """
    data = bundle.ranges_bytes()
    return None if data is None else from_json(data)


def to_json(calibration: Calibration) -> bytes:
    """Returns the content of the file; numbers have six digits."""

    def numbers(found: Range) -> list[float]:
        return [float(f"{value:.6g}") for value in msgspec.structs.astuple(found)]

    stages = {
        stage: {name: numbers(found) for name, found in tensors.items()}
        for stage, tensors in calibration.ranges.items()
    }
    return f"{pretty({**_HEADER, 'signals': dict(calibration.signals), 'stages': stages})}\n".encode()


@raised_as(BundleError)
def from_json(data: bytes) -> Calibration:
    """Returns the calibration that a file holds.

    Raises:
        BundleError: names what was found and what was expected.
    """
    found = document(data, _HEADER, _File, RANGES_FILE, FIX)
    return Calibration(found.signals, found.stages)
