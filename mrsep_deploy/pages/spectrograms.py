"""A stem of two engines and their difference as images: magnitude over time and frequency, in dB.

Frequency is logarithmic, 40 Hz at the bottom; each image is a PNG with a palette, inside a data URI.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from scipy.signal import spectrogram

from mrsep_deploy.pages.blocks import Picture, Pictures, Tick
from mrsep_deploy.pages.scales import Scale
from mrsep_deploy.verification.results import Excerpt

Image = NDArray[np.uint8]
Power = NDArray[np.float64]

WINDOW_SECONDS = 0.093
COLUMNS, ROWS = 400, 160
LOWEST_HZ = 40.0
RANGE_DB = 80.0
TICKS_HZ = (100, 300, 1000, 3000, 10000)
_STOPS = ((0, 0, 4), (60, 15, 110), (150, 40, 110), (225, 90, 60), (250, 175, 50), (252, 252, 200))
"""Dark to light, brightness rising all along, so that it reads in grey as well."""


def spectrogram_block(excerpt: Excerpt) -> Pictures:
    """Candidate, reference, and what is between them, which has a scale of its own."""
    seconds = len(excerpt.candidate) / excerpt.sample_rate
    reference = power(excerpt.reference, excerpt.sample_rate)
    error = power(excerpt.candidate - excerpt.reference, excerpt.sample_rate)
    top, bottom = peak_db(reference), peak_db(error)
    said = "no difference at all" if not error.any() else f"its loudest point {top - bottom:.0f} dB lower"
    pictures = [
        Picture(
            title,
            data_uri(shades(found, top)),
            f"Spectrogram of {excerpt.source} by {title}: {seconds:.1f} s",
        )
        for title, found in (
            (excerpt.candidate_title, power(excerpt.candidate, excerpt.sample_rate)),
            (excerpt.reference_title, reference),
        )
    ]
    difference = data_uri(shades(error, bottom))
    pictures.append(Picture(f"The difference: {said}", difference, f"Spectrogram of the difference: {said}"))
    # Time in seconds or, where the excerpt is short, in milliseconds; frequency is logarithmic.
    factor, unit = (1, "s") if seconds >= 1 else (1000, "ms")
    octaves = np.log(excerpt.sample_rate / 2 / LOWEST_HZ)
    frequencies = [
        Tick(
            round(100 * float(np.log(hertz / LOWEST_HZ) / octaves), 3),
            f"{hertz} Hz" if hertz < 1000 else f"{hertz // 1000} kHz",
        )
        for hertz in TICKS_HZ
        if LOWEST_HZ < hertz < excerpt.sample_rate / 2
    ]
    return Pictures(
        f"Spectrograms: {excerpt.source} of {excerpt.track}",
        f"{excerpt.why} Frequency is logarithmic, {LOWEST_HZ:g} Hz to {excerpt.sample_rate / 2000:g} kHz. The loudest "
        f"point of an image has the lightest colour, and {RANGE_DB:g} dB below it is black. The difference has a scale "
        "of its own.",
        pictures,
        Scale(0.0, seconds * factor).ticks(lambda value: f"{value:g} {unit}"),
        frequencies,
    )


def power(samples: NDArray[np.float32], sample_rate: int) -> Power:
    """Power ``[ROWS, COLUMNS]``, the highest frequency first; the greatest of the bins and frames in each cell."""
    window = 2 ** round(np.log2(WINDOW_SECONDS * sample_rate))
    finite = np.nan_to_num(samples.astype(np.float64), posinf=0.0, neginf=0.0)
    padded = np.pad(finite, (0, max(0, window - len(samples))))
    hop = min(max(1, len(padded) // COLUMNS), window)
    _, _, found = spectrogram(
        padded, sample_rate, window="hann", nperseg=window, noverlap=window - hop, detrend=False
    )
    bins: Power = found
    edges = np.geomspace(LOWEST_HZ, sample_rate / 2, ROWS + 1) * window / sample_rate
    low = np.minimum(edges[:-1].astype(int), len(bins) - 1)
    high = np.maximum(np.ceil(edges[1:]).astype(int), low + 1)
    rows = [bins[a:b].max(axis=0) for a, b in zip(low, high, strict=True)]
    places = np.linspace(0, bins.shape[1] - 1, COLUMNS).round().astype(int)
    image: Power = np.stack(rows)[::-1, places]
    return image


def peak_db(values: Power) -> float:
    """The loudest point in dB; 0 for silence."""
    most = float(values.max())
    return 10 * float(np.log10(most)) if most > 0 else 0.0


def shades(values: Power, top: float) -> Image:
    """dB below ``top`` as indices into the palette, 255 the loudest."""
    with np.errstate(divide="ignore"):
        shares = 1 + (10 * np.log10(values) - top) / RANGE_DB
    found: Image = np.rint(255 * np.clip(np.nan_to_num(shares, neginf=0.0), 0, 1)).astype(np.uint8)
    return found


def data_uri(indices: Image) -> str:
    """An image ``[rows, columns]`` as a PNG with a palette (PNG specification, third edition), for ``src``."""
    rows, columns = indices.shape
    places = np.linspace(0, 255, len(_STOPS))
    channels = [np.interp(np.arange(256), places, channel) for channel in zip(*_STOPS, strict=True)]
    palette = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    lines = b"".join(b"\0" + line.tobytes() for line in indices)
    data = b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", palette.tobytes()),
            _chunk(b"IDAT", zlib.compress(lines, 9)),
            _chunk(b"IEND", b""),
        )
    )
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
