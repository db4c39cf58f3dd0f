"""A small HTDemucs as demucs publishes it, with random weights that all matter: exported in seconds."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pickles
from models import SMALL, make

SOURCES = ["drums", "bass", "other", "vocals"]


def write(path: Path, seed: int = 0, **arguments: object) -> Path:
    """The package; ``arguments`` are those of the class."""
    kwargs = {**SMALL, "sources": SOURCES, "nfft": 512, "t_layers": 0, **arguments}
    state = make("htdemucs", kwargs, seed).state_dict()
    return pickles.save(path, state, kwargs=kwargs, training_args={})


@functools.cache
def data() -> bytes:
    """The bytes of the package."""
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder) / "small.th").read_bytes()
