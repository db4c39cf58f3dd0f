"""A small HTDemucs for what depends on the program around the model: hours of music, hundreds of files."""

from __future__ import annotations

from pathlib import Path

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.load import untrained_model

TITLE = "HTDemucs of 4 channels and 2 layers, no transformer, untrained; four stems, segments of 7.8 s at 44.1 kHz"


def small_bundle(place: Path) -> Bundle:
    """The published structure, much smaller; seeded weights."""
    arguments = {"channels": 4, "dconv_comp": 4, "depth": 2, "t_layers": 0, "nfft": 2048, "segment": 7.8}
    return export_model(untrained_model("htdemucs", 0, **arguments), "small", place, ExportOptions())
