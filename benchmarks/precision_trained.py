"""What float16 loses on trained weights and real music, through the command line alone.

    python benchmarks/precision_trained.py [--model htdemucs] [--track excerpt --track chaos_god] [--store STORE]
    python benchmarks/precision_trained.py --left      # what has not been measured yet

Separates every track twice, with ``run --float32`` and with ``run --precision fp16 --float32``, by the trained HTDemucs
and by the model that comes with the package, and judges every stem as ``verify`` does. Tracks are the four-stem
excerpt, five whole songs and, with ``--store``, an LMMS song as ``examples/train/lmms_songs.py STORE`` renders it. The
engine is ONNX Runtime's CPU, which rounds float16 after every operator. Stems keep their level (``--clip-mode none``):
one that is lowered to fit into full scale would be lowered a little otherwise in float16.

Writes ``benchmarks/results/precision_trained.json`` after every track. What is there of the same model and
conversion is not measured again (``--again`` does), so that an interrupted run goes on where it stopped. On two cores
a minute of music takes the trained HTDemucs about four minutes, and the shipped model about one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import figures_source
import numpy as np
import soundfile
from assets import SAMPLE_RATE, read_excerpt, songs, trained_htdemucs
from machine_info import RESULTS, ROOT, machine_info, write_result
from numpy.typing import NDArray

from mrsep_deploy.bundle import shipped
from mrsep_deploy.files.strict_json import finite
from mrsep_deploy.measuring.deviation import Deviation, ratio_db
from mrsep_deploy.measuring.limits import Powers, limit_for
from mrsep_deploy.precision.convert_bundle import VERSION
from mrsep_deploy.verification.figures import Difference

NAME = "precision_trained"
MODELS: Mapping[str, Callable[[], Path]] = {
    "mrsep-small": lambda: shipped.BUNDLE,
    "htdemucs": trained_htdemucs,
}
"""The bundle that comes with the package, and a checkpoint; the faster model first."""
EXCERPT = "excerpt"
LMMS = "lmms-Thomasso-AxeFromThe80s"
FRAMES = 2**20
"""Of a block in which stems are compared."""

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Material:
    """A track: its blocks ``[2, n]`` at 44.1 kHz, and its true stems where they are known."""

    name: str
    blocks: Callable[[], Iterable[Samples]]
    truth: Mapping[str, Samples] = field(default_factory=dict)

    @classmethod
    def of_stems(cls, name: str, truth: Mapping[str, Samples]) -> Material:
        """A track that is the sum of its true stems."""
        return cls(name, lambda: [np.sum(list(truth.values()), axis=0, dtype=np.float32)], truth)


def materials(store: Path | None) -> Iterator[Material]:
    """All tracks, the shortest first; the LMMS song only out of a store."""
    yield Material.of_stems(EXCERPT, read_excerpt())
    yield from (Material(song.name, song.blocks) for song in songs())
    if store is not None:
        yield Material.of_stems(LMMS, read_lmms(store))


def read_lmms(store: Path) -> Mapping[str, Samples]:
    """The true stems of the held-out LMMS song, ``[2, samples]``."""
    sys.path.append(str(ROOT / "examples" / "train"))
    from store import read_entries

    found = next((entry for entry in read_entries(store, "held_out") if entry.name == LMMS), None)
    if found is None:
        raise SystemExit(f"{store} has no {LMMS}, expected what examples/train/lmms_songs.py writes there")
    return {source: found.read(source) for source in found.stems}


# --- what is there already


def conditions(model: str) -> dict[str, object]:
    """What a result depends on beside the track: another one makes it stale."""
    return {"sha256": _sha256(MODELS[model]()), "converter": VERSION}


@cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def known() -> dict[str, dict[str, Any]]:
    """Entries by model and track, as they were measured."""
    if not (RESULTS / f"{NAME}.json").exists():
        return {}
    return {model: dict(tracks) for model, tracks in figures_source.result(NAME)["models"].items()}


def is_done(found: Mapping[str, Mapping[str, Any]], model: str, track: str) -> bool:
    """Whether a track has been measured under the conditions of today."""
    entry = found.get(model, {}).get(track)
    return entry is not None and entry["conditions"] == conditions(model)


# --- measuring


class CommandLine:
    """``mrsep-deploy`` with a registry and a cache of its own, in a folder that lasts as long as this script."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.exported: set[str] = set()

    def call(self, *arguments: str) -> None:
        """Runs a command; an exit code other than 0 ends this script."""
        command = [sys.executable, "-m", "mrsep_deploy", *arguments]
        env = {**os.environ, "MRSEP_DEPLOY_HOME": str(self.folder / "home")}
        code = subprocess.run(command, env=env).returncode
        if code:
            raise SystemExit(f"mrsep-deploy {' '.join(arguments)} ended with {code}")

    def separate(self, model: str, mix: Path, precision: str) -> tuple[Path, Mapping[str, Any]]:
        """Returns the folder of the stems, and what the run's summary says of the track in numbers."""
        source = MODELS[model]()
        if source != shipped.BUNDLE and model not in self.exported:
            self.call("export", str(source), "--name", model, "--quiet")
            self.exported.add(model)
        out, summary = self.folder / precision, self.folder / f"{precision}.json"
        given = ("-n", model, "--engine", "ort", "--threads", str(self.threads), "--precision", precision)
        written = ("--float32", "--clip-mode", "none", "--filename", "{stem}.{ext}", "-o", str(out))
        self.call("run", str(mix), *given, *written, "--summary", str(summary), "--quiet")
        (track,) = json.loads(summary.read_text(encoding="utf-8"))["tracks"]
        return out / model, {name: value for name, value in track.items() if isinstance(value, (int, float))}


def measured(model: str, material: Material, commands: CommandLine) -> dict[str, Any]:
    """Separates a track in both precisions, and judges the stems."""
    mix, made = commands.folder / f"{material.name}.wav", machine_info()
    with soundfile.SoundFile(mix, "w", SAMPLE_RATE, 2, subtype="FLOAT") as file:
        for block in material.blocks():
            file.write(block.T)
    exact, slow = commands.separate(model, mix, "fp32")
    low, run = commands.separate(model, mix, "fp16")
    power = _difference(mix, mix).signal
    stems = {
        path.stem: _judged(low / path.name, path, power, material.truth.get(path.stem))
        for path in sorted(exact.glob("*.wav"))
    }
    frames = soundfile.info(mix).frames
    mix.unlink()
    return {
        "conditions": conditions(model),
        "machine": made,
        "seconds": round(frames / SAMPLE_RATE, 2),
        "runs": {"fp32": slow, "fp16": run},
        "mix_dbfs": round(ratio_db(power, 2.0 * frames), 1),
        "stems": stems,
        "passes": all(stem["passes_by"] is not None for stem in stems.values()),
    }


def _judged(low: Path, exact: Path, mix: float, truth: Samples | None) -> dict[str, Any]:
    """One stem in float16 against float32; ``mix`` is the energy of the track."""
    found = _difference(low, exact)
    count = found.elements
    judgement = limit_for("float16").judge(Powers(found.signal / count, found.error / count, mix / count))
    figures = {
        "snr_db": finite(round(judgement.powers.snr, 2)),
        "level_dbfs": finite(round(found.figures().level, 1)),
        "below_mix_db": finite(round(judgement.powers.below_mix, 1)),
        "passes_by": judgement.passes_by,
    }
    if truth is None or not truth.any():
        return figures
    before, after = (Deviation.between(soundfile.read(path)[0].T, truth).snr for path in (exact, low))
    return {**figures, "sdr_db": round(before, 3), "sdr_change_db": round(after - before, 5)}


def _difference(value: Path, reference: Path) -> Difference:
    """Two sound files, block by block."""
    found = Difference()
    for first, second in zip(_blocks(value), _blocks(reference), strict=True):
        found.add(first, second)
    return found


def _blocks(path: Path) -> Iterator[Samples]:
    yield from soundfile.blocks(path, FRAMES, dtype="float32")


# --- the script


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    tracks = {material.name: material for material in materials(options.store)}
    for name in options.track or ():
        if name not in tracks:
            raise SystemExit(f"there is no track {name!r}, expected one of {', '.join(tracks)}")
    wanted = [(model, name) for model in options.model or MODELS for name in options.track or tracks]
    found = known()
    left = [each for each in wanted if options.again or not is_done(found, *each)]
    with tempfile.TemporaryDirectory() as work:
        commands = CommandLine(Path(work), options.threads)
        while left and not options.left:
            model, name = left[0]
            entry = measured(model, tracks[name], commands)
            found.setdefault(model, {})[name] = entry
            write_result(NAME, {"models": {each: found[each] for each in MODELS if each in found}})
            for line in _lines(model, name, entry):
                print(line, flush=True)
            left = left[1:]
    print("left:", ", ".join(f"{name} by {model}" for model, name in left) or "nothing")
    if options.store is None:
        print(f"{LMMS}: only with --store STORE, which examples/train/lmms_songs.py renders")


def _lines(model: str, name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    for source, stem in entry["stems"].items():
        snr = "exact" if stem["snr_db"] is None else f"{stem['snr_db']:.1f} dB"
        change = f", SDR {stem['sdr_change_db']:+.4f} dB" if "sdr_change_db" in stem else ""
        yield (
            f"{model}, {name}: {source} {snr} at {stem['level_dbfs']} dBFS, error {stem['below_mix_db']} dB below "
            f"the mix: {f'passes by {way}' if (way := stem['passes_by']) else 'FAILS'}{change}"
        )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=list(MODELS), help="default: all")
    parser.add_argument("--track", action="append", metavar="NAME", help="default: all")
    parser.add_argument("--store", type=Path, help="where examples/train/lmms_songs.py has written its songs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="also what has been measured already")
    parser.add_argument("--left", action="store_true", help="only print what has not been measured")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
