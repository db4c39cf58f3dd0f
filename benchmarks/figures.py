"""The figures in the README, the docs and the model card, from the result files that they were measured into.

    python benchmarks/figures.py            # show them
    python benchmarks/figures.py --write    # put them into the pages

They stand between two comment lines. A test compares both, so that no figure outlives its measurement.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures_accumulation import accumulation
from figures_benchmarking import benchmarking
from figures_cpu import cpu
from figures_shipped import card
from figures_source import ENGINES, MODELS, SOURCES, machine, result
from machine_info import ROOT

README = ROOT / "README.md"
BEGIN = "<!-- figures: written by benchmarks/figures.py -->"
END = "<!-- end of figures -->"
SONGS = {"chaos_god": "with vocals", "metal_madness": "without vocals"}


def figures() -> str:
    """All of it, as Markdown."""
    return "\n".join([*_speed(), "", *_memory(), "", *_parity(), "", *_precision(), "", *accumulation()])


def _speed() -> Iterator[str]:
    first = result("run_speed_trained")
    yield f"Seconds for one segment of music on {machine(first)}, taking turns, medians of {first['rounds']} rounds."
    yield "The ratio is to PyTorch eager in the same round, with its range; (demucs) to the PyPI package demucs."
    yield "Of a sequential run's time the host spends `transforms` on spectrograms, inverses and sums."
    yield ""
    yield "| model | engine | sequential | concurrent | PyTorch | times faster | (demucs) | transforms | no stage ran |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for model, title in MODELS.items():
        found = result(f"run_speed_{model}")
        seconds, faster = found["seconds"], found["times_faster"]
        for engine, name in ENGINES.items():
            ratio = faster[f"{engine} than torch"]
            share = found["share_of_time"][engine]
            published = faster.get(f"{engine} than demucs")
            yield "| " + " | ".join(
                [
                    f"{title}, {found['segment_seconds']:g} s",
                    name,
                    f"{seconds[engine]['median']:.2f}",
                    f"{seconds[f'{engine} concurrent']['median']:.2f}",
                    f"{seconds['torch']['median']:.2f}",
                    _ratio(ratio),
                    _ratio(published) if published else "",
                    f"{share['outside_engine_calls'] - share['outside_stages']:.1%}",
                    f"{share['outside_stages']:.1%}",
                ]
            ) + " |"  # fmt: skip


def _memory() -> Iterator[str]:
    yield "| `run` | peak memory | growth in the later half |"
    yield "|---|---|---|"
    for run in (*ENGINES, "openvino_shipped"):
        found = result(f"memory_hour_{run}")
        name = ENGINES[found["engine"]]
        what = (
            f"{found['song_seconds'] / 60:g} minutes of music, {found['model']}, {name}, `{found['layout']}`"
        )
        yield f"| {what} | {_megabytes(found['peak_mib'])} | {_megabytes(found['growth_mib'])} |"


def _parity() -> Iterator[str]:
    found = {name: result(f"parity_trained_{name}") for name in SONGS}
    excerpt = found[next(iter(SONGS))]["excerpt"]
    yield "| SNR in dB against demucs 4.1.0 in float64 | drums | bass | other | vocals |"
    yield "|---|---|---|---|---|"
    for layout, values in excerpt["layouts"].items():
        yield _row(f"four-stem excerpt, {excerpt['seconds']:g} s, `{layout}`", values["snr"])
    yield _row("the same, demucs itself in float32", excerpt["demucs_float32"]["snr"])
    for name, kind in SONGS.items():
        song = found[name]["song"]
        yield _row(f"whole song {kind}, {song['seconds']:.0f} s, `split`", song["snr"])
        yield _row("the same, demucs itself in float32", song["demucs_float32"]["snr"])
    yield _row("SDR of the excerpt against its true stems", excerpt["layouts"]["split"]["sdr"], 2)
    yield _row("the same, demucs in float64", excerpt["sdr_demucs"], 2)


def _precision() -> Iterator[str]:
    yield "| float16 against float32, SNR in dB (emulated on a CPU) | drums | bass | other | vocals |"
    yield "|---|---|---|---|---|"
    for model, tracks in result("precision_trained")["models"].items():
        for name, track in tracks.items():
            yield from _in_float16(model, name, track)
    yield ""
    yield from _profile()
    yield ""
    yield from _made_up()
    yield ""
    yield "| golden checkpoint in float16 | worst stem of its mix, dB | of all signals, dB |"
    yield "|---|---|---|"
    for name, golden in result("precision_goldens")["goldens"].items():
        snr = golden["worst_snr"]
        heard = [value for value in snr.values() if value is not None]
        yield f"| `{name}` | {snr['golden']:.1f} | {min(heard):.1f} |"
    yield ""
    yield from _published()


def _profile() -> Iterator[str]:
    """Where the stems that fail lose it, and how many segments would have to run in float32."""
    stems = result("precision_profile")["stems"]
    stages = list(stems[0]["worst"][0]["alone_below_mix_db"])
    yield (
        "| htdemucs, the segment with most error: dB below the mix | the stem | its error "
        f"| {' | '.join(f'{stage} alone' for stage in stages)} |"
    )
    yield "|---|---|---|" + "---|" * len(stages)
    for found in stems:
        worst = found["worst"][0]
        alone = " | ".join(f"{worst['alone_below_mix_db'][stage]:.0f}" for stage in stages)
        yield (
            f"| {found['song']}, {found['source']}, segment {worst['segment']} "
            f"| {worst['stem_below_mix_db']:.0f} | {worst['below_mix_db']:.0f} | {alone} |"
        )
    yield ""
    for found in stems:
        redone, whole = found["with_those_in_float32"], found["in_float16"]
        yield (
            f"- {found['song']}, {found['source']}: {whole['snr_db']:.1f} dB; {redone['snr_db']:.1f} dB with the "
            f"{found['failing_segments']} of {found['segments']} segments in float32 in which a stem fails by itself."
        )


def _made_up() -> Iterator[str]:
    """How brief sounds in silence fare, with the gate and without."""
    found = result("gate_made_up_trained")
    low, high = found["crest_factors"]
    count, passed = found["segments"], found["segments"] - found["in_float32"]
    yield (
        f"| htdemucs, {count} made-up segments (crest factors {low:.0f} to {high:.0f}), by burstiness "
        f"| segments | worst stem, dB | with the gate at {found['gate']['burstiness']:g} |"
    )
    yield "|---|---|---|---|"
    for row in found["rows"]:
        name = f"above {row['above']:g}" if row["up_to"] is None else f"{row['above']:g} to {row['up_to']:g}"
        all_gated = row["in_float32"] == row["segments"]
        gated = "float32" if all_gated else _decibels(row["worst_snr_with_gate_db"])
        yield f"| {name} | {row['segments']} | {_decibels(row['worst_snr_db'])} | {gated} |"
    yield (
        f"| fail, of those in float16 | | {found['failed_without_gate']} of {count} "
        f"| {found['failed_with_gate']} of {passed} |"
    )


def _decibels(value: float | None) -> str:
    """An SNR; of silence, which is exact, there is none."""
    return "exact" if value is None else f"{value:.1f}"


def _published() -> Iterator[str]:
    yield "| untrained, published size, 10 s: the proof, dB | drums | bass | other | vocals | weakest stage |"
    yield "|---|---|---|---|---|---|"
    for name, family in result("precision_published")["families"].items():
        proof = family["proof"]
        snr = {stage: each["snr_db"] for stage, each in proof["stages"].items()}
        weakest = min(snr, key=snr.__getitem__)
        cells = " | ".join(f"{proof['stems'][source]:.1f}" for source in SOURCES)
        yield f"| `{name}` | {cells} | {weakest}: {snr[weakest]:.1f} |"


def _in_float16(model: str, name: str, track: Mapping[str, Any]) -> Iterator[str]:
    """A row of SNR, and one of the changes in SDR where true stems are known."""
    stems = [track["stems"][source] for source in SOURCES]
    run = track["runs"]["fp16"]
    redone = f"{run['segments_in_float32']} of {run['segments']} segments in float32"
    what = f"{model}, {name}, {track['seconds']:.0f} s, {redone}"
    yield f"| {what} | {' | '.join(map(_stem_in_float16, stems))} |"
    changes = [stem.get("sdr_change_db") for stem in stems]
    if any(change is not None for change in changes):
        cells = ("" if change is None else f"{change:+.4f}" for change in changes)
        yield f"| the same, change in SDR, dB | {' | '.join(cells)} |"


def _stem_in_float16(stem: Mapping[str, Any]) -> str:
    """The SNR; of a stem that does not pass by that, how far below the mix its error lies, too."""
    snr = "exact" if stem["snr_db"] is None else f"{stem['snr_db']:.1f}"
    if stem["passes_by"] == "SNR":
        return snr
    return f"{snr}, {stem['below_mix_db']:.0f} below the mix{'' if stem['passes_by'] else ': fails'}"


def _row(title: str, values: Mapping[str, float], digits: int = 1) -> str:
    return f"| {title} | " + " | ".join(f"{value:.{digits}f}" for value in values.values()) + " |"


def _ratio(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"


def _megabytes(mebibytes: float) -> str:
    return f"{mebibytes * 2**20 / 1e6:,.0f} MB"


PAGES: Mapping[Path, Callable[[], str]] = {
    README: figures,
    ROOT / "docs" / "benchmarking.md": benchmarking,
    ROOT / "docs" / "cpu.md": cpu,
    ROOT / "mrsep_deploy" / "bundle" / "shipped" / "MODEL_CARD.md": card,
}
"""What stands between the comments of each page."""


def block(text: str) -> str:
    """What stands between the two comments of a page.

    Raises:
        ValueError: it does not have both.
    """
    return _parted(text)[1].strip("\n")


def _parted(text: str) -> tuple[str, str, str]:
    """A page before, between and after the two comments."""
    before, begun, rest = text.partition(BEGIN)
    inside, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"the page has no {END if begun else BEGIN}")
    return before, inside, after


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put them into the pages")
    options = parser.parse_args(arguments)
    for page, make in PAGES.items():
        if options.write:
            write(page, make())
        else:
            print(make())


def write(page: Path, new: str) -> None:
    """Replace what stands between the two comments of a page."""
    before, _, after = _parted(page.read_text(encoding="utf-8"))
    page.write_text(f"{before}{BEGIN}\n\n{new}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
