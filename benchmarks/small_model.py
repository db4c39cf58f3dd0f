"""A small HTDemucs for what depends on the program around the model: hours of music, hundreds of files."""

from __future__ import annotations

from pathlib import Path

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.load import untrained_model

TITLE = "HTDemucs of 4 channels, untrained, 7.8 s segments at 44.1 kHz, four stems"


def small_bundle(place: Path) -> Bundle:
    """The published structure with 4 instead of 48 channels and one layer of the transformer; seeded weights."""
    arguments = {"channels": 4, "t_layers": 1, "t_heads": 2, "t_hidden_scale": 1.0, "segment": 7.8}
    return export_model(untrained_model("htdemucs", 0, **arguments), "small", place, ExportOptions())
