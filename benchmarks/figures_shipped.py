"""The figures of the shipped model's card, from the result file that they were measured into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from figures_source import machine, result

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.shipped import BUNDLE

LMMS = "lmms-Thomasso-AxeFromThe80s"
EXCERPT = "excerpt"
TITLES = {
    LMMS: 'LMMS song "AxeFromThe80s" by Thomasso, 235 s',
    EXCERPT: "real music: four-stem excerpt, 6 s",
}


def card() -> str:
    """Everything measured of the shipped model, as Markdown."""
    found = result("shipped_model")
    return "\n".join([*_scores(found), "", *_shares(found), "", *_rest(found)])


def _scores(found: Mapping[str, Any]) -> Iterator[str]:
    songs = {name: track for name, track in found["tracks"].items() if name not in TITLES}
    yield "SDR in dB over whole tracks, `10 log10(|s|² / |s - e|²)`; silence would have 0."
    yield ""
    yield "| held out | source | model | mixture as estimate | gain | baseline |"
    yield "|---|---|---|---|---|---|"
    for source, medians in found["medians"].items():
        title = f"median of {len(songs) + 1} held-out songs"
        yield _row(title, source, medians, medians["gain"])
    for name, title in TITLES.items():
        track = found["tracks"][name]
        for source in track["model"]:
            values = {kind: track[kind][source] for kind in ("model", "mixture", "baseline")}
            yield _row(title, source, values, values["model"] - values["mixture"])


def _row(title: str, source: str, values: Mapping[str, float], gain: float) -> str:
    cells = (values["model"], values["mixture"])
    numbers = [f"{value:.1f}" for value in cells]
    return f"| {title} | {source} | {' | '.join(numbers)} | {gain:+.1f} | {values['baseline']:.1f} |"


def _shares(found: Mapping[str, Any]) -> Iterator[str]:
    windows = [
        branch.transform.n_fft
        for branch in Bundle.open(BUNDLE, verify=False).manifest.branches
        if branch.transform
    ]
    yield "| learnt fusion weights, window of | " + " | ".join(map(str, windows)) + " |"
    yield "|---|" + "---|" * len(windows)
    for share in found["fusion"]:
        yield f"| {share['where']} | " + " | ".join(f"{weight:.3f}" for weight in share["weights"]) + " |"


def _rest(found: Mapping[str, Any]) -> Iterator[str]:
    low = found["float16"]
    heard = {source: snr for source, snr in low["snr"].items() if source != "vocals"}  # which are silent
    worst = min(heard, key=lambda source: float(heard[source]))
    reaches = "passes" if low["passes"] else "does not pass"
    moved = max(map(abs, low["sdr_change"].values()))
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in found["bytes"].items())
    yield f"- Files: {sizes}. Segments of {found['segment_seconds']:g} s."
    yield f"- float16 (emulated on a CPU) against float32 on the excerpt: {heard[worst]:.1f} dB or more ({worst});"
    yield f"  SDR moves by {moved:.4f} dB at most. It {reaches} the limits of `mrsep-deploy verify`."
    yield from _songs_in_float16()
    yield f"- PyTorch, on {machine(found)}: {found['realtime']:.1f} times real time."


def _songs_in_float16() -> Iterator[str]:
    """Whole songs: the sources that sound, and the vocals, which are next to silent."""
    tracks = result("precision_trained")["models"]["mrsep-small"]
    stems = {name: track["stems"] for name, track in tracks.items() if name != EXCERPT}
    heard = [stem["snr_db"] for song in stems.values() for source, stem in song.items() if source != "vocals"]
    vocals = [song["vocals"] for song in stems.values()]
    snr, level, below = ([stem[key] for stem in vocals] for key in ("snr_db", "level_dbfs", "below_mix_db"))
    failed = sum(not track["passes"] for track in tracks.values())
    yield f"- The same on {len(stems)} whole songs: drums, bass and other {min(heard):.1f} dB or more;"
    yield f"  vocals {min(snr):.1f} to {max(snr):.1f} dB, of stems at {min(level):.0f} to {max(level):.0f} dBFS,"
    yield f"  so that their error lies {min(below):.0f} dB or more below the mix."
    yield f"  {len(tracks) - failed} of these {len(tracks)} tracks pass."
