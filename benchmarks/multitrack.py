"""A multitrack of minutes, rendered: four held-out songs of the training example, with synthetic singing.

    python benchmarks/multitrack.py tracks
    mrsep-deploy eval tracks -n trained --engine torch,ort,openvino -o evaluated --html eval.html

Writes ``FOLDER/SONG/{mixture,drums,bass,other,vocals}.wav`` (float32, 44.1 kHz, 45 s each), what ``mrsep-deploy
eval`` reads. Songs, soundfont and voice are made the same at every call; songs and soundfont are fetched to a
cache. No composed song has words, so that vocals are a line of ``voices.py``, which a model trained on music need
not take for singing: engines are compared here, and a model only with itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples" / "train"))

from material import FONTS
from midi import GROUPS, Variation
from render import HELD_OUT_SECONDS, Job, Renderer
from store import SAMPLE_RATE, read_entries
from voices import sing

SONGS = (
    "freedoom2-D_SHAWN",
    "openmsx-the_fast_route",
    "planetblupi-music003",
    "simutrans-48-Techno-movement",
)
SEED = 6
VOICE = 0.35
"""Peak of the voice, of full scale: about as loud as the instruments together."""

Stems = dict[str, NDArray[np.float32]]


def render(store: Path) -> dict[str, Stems]:
    """The songs' stems ``[2, samples]`` by name, rendered by way of a store in a folder."""
    font = next(font.name for font in FONTS.values() if font.held_out)
    renderer = Renderer(store)
    for song in SONGS:
        job = Job(song, song, dict.fromkeys(GROUPS, font), (0,))
        if not renderer.render(job, "held_out", HELD_OUT_SECONDS, Variation()):
            raise SystemExit(f"{song} lacks drums, bass or other instruments, choose another song")
    found = {}
    for number, entry in enumerate(read_entries(store, "held_out")):
        stems = {source: entry.read(source) for source in GROUPS}
        voice = sing(entry.frames / SAMPLE_RATE, np.random.default_rng((SEED, number)))
        found[entry.name] = {**stems, "vocals": (VOICE * voice[:, : entry.frames]).astype(np.float32)}
    return found


def write(folder: Path, stems: Stems) -> None:
    """A track, its mixture the sum of its stems."""
    folder.mkdir(parents=True, exist_ok=True)
    mixture = np.sum(list(stems.values()), axis=0, dtype=np.float32)
    for name, samples in {**stems, "mixture": mixture}.items():
        soundfile.write(folder / f"{name}.wav", samples.T, SAMPLE_RATE, subtype="FLOAT")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the tracks go")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as work:
        for name, stems in render(Path(work)).items():
            write(options.folder / name, stems)
            print(options.folder / name)


if __name__ == "__main__":
    main()
