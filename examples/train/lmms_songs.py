"""Songs made with LMMS, rendered track by track: real mixes with effects, made by their composers.

    python lmms_songs.py STORE [--program lmms]

Needs the program ``lmms`` (1.2); its demo projects come from the Debian package ``lmms-common``. One of them is
held out. Tracks are numbered as ``lmms rendertracks`` numbers them; where it cannot be told which tracks are the
bass, only the drums are taken.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from material import PACKAGES, fetched
from numpy.typing import NDArray
from store import SAMPLE_RATE, entry_path, write_entry

from mrsep_deploy.audio.read import AudioSource

PACKAGE = "lmms-common"
_NUMBERED = re.compile(r"(\d+)_")
_SECONDS = 3600


@dataclass(frozen=True)
class Project:
    """A demo project; tracks that are neither drums nor bass are ``other``.

    Attributes:
        bass: none where it cannot be told which tracks they are.
    """

    file: str
    drums: tuple[int, ...]
    bass: tuple[int, ...] = ()
    held_out: bool = False


PROJECTS = (
    Project("demos/Thomasso-AxeFromThe80s.mmpz", (5, 6, 7, 8, 9, 10, 11), (13,), held_out=True),
    Project("demos/CapDan/CapDan-ReggaeTry.mmpz", (1, 2, 3, 4, 5), (7,)),
    Project("demos/CapDan/CapDan-ReggaetonTry.mmpz", (1, 2, 3, 4, 5), (7,)),
    Project("shorties/Crunk(Demo).mmp", (1,), (2,)),
    Project("shorties/Skiessi-222.mmpz", (3, 4, 5, 6, 7)),
    Project("shorties/DirtyLove.mmpz", (1, 2, 3, 9), (4,)),
    Project("demos/Skiessi/Skiessi-C64.mmpz", (6, 7, 8, 9)),
    Project("demos/CapDan/CapDan-ZeroSumGame-OriginalByZakarra.mmpz", (1, 2, 3, 4, 5, 6, 7, 8), (10, 11, 12)),
    Project("demos/CapDan/CapDan-TwilightArea-OriginalByAlf42red.mmpz", (1, 2, 3, 4), (5, 6)),
    Project("demos/Settel-InnerRecreation.mmpz", (6, 7, 8, 9, 10, 11), (4,)),
)


class RenderError(RuntimeError):
    """LMMS did not render a project."""


def render_tracks(program: str, project: Path) -> dict[int, NDArray[np.float32]]:
    """Every track of a project by number, ``[2, samples]``.

    Raises:
        RenderError: LMMS is not there, fails or takes too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        # LMMS runs as root only when told so, as in containers.
        allowed = ["--allowroot"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        command = [
            program,
            *allowed,
            "rendertracks",
            str(project),
            "-f",
            "wav",
            "-a",
            "-x",
            "1",
            "-o",
            folder,
        ]
        environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, errors="replace", timeout=_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RenderError(f"{project.name}: {error}; install LMMS 1.2 or leave its songs out") from error
        tracks = {}
        for path in sorted(Path(folder).glob("*.wav")):
            number = _NUMBERED.match(path.name)
            if number:
                tracks[int(number[1])] = AudioSource(path, SAMPLE_RATE, 2).read()
        if done.returncode or not tracks:
            raise RenderError(f"{project.name}: LMMS ended with code {done.returncode}: {done.stdout[-300:]}")
        return tracks


def stems_of(project: Project, tracks: dict[int, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Sums of tracks by stem, as long as the longest; only the drums where the bass is not known."""
    length = max(track.shape[1] for track in tracks.values())
    stems = {source: np.zeros((2, length), np.float32) for source in ("drums", "bass", "other")}
    for number, track in tracks.items():
        source = "drums" if number in project.drums else "bass" if number in project.bass else "other"
        stems[source][:, : track.shape[1]] += track
    return stems if project.bass else {"drums": stems["drums"]}


def store_projects(store: Path, program: str) -> None:
    """Render and store the projects that are not there yet."""
    folder = fetched(PACKAGE) / "usr/share/lmms/projects"
    for project in PROJECTS:
        split = "held_out" if project.held_out else "train"
        name = f"lmms-{Path(project.file).stem}"
        if entry_path(store, split, name).exists():
            continue
        stems = stems_of(project, render_tracks(program, folder / project.file))
        info = {"song": project.file, "package": PACKAGE, "licence": PACKAGES[PACKAGE].licence}
        write_entry(store, split, name, stems, whole=bool(project.bass), info=info)
        print(f"{name}: {stems['drums'].shape[1] / SAMPLE_RATE:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--program", default="lmms")
    options = parser.parse_args()
    store_projects(options.store, options.program)


if __name__ == "__main__":
    main()
