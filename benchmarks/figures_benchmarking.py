"""The figures of docs/benchmarking.md, from the result files that they were measured into."""

from __future__ import annotations

from collections.abc import Iterator

from figures_source import interval, machine, result
from machine_info import RESULTS

RUNTIMES = {"torch": "PyTorch", "ort": "ONNX Runtime"}


def benchmarking() -> str:
    """All that was measured, as Markdown; what was not has no section."""
    sections = {"paper_tables": _paper, "bench_thrice": _thrice, "report_eval": _multitrack}
    made = ["\n".join(section()) for name, section in sections.items() if (RESULTS / f"{name}.json").exists()]
    return "\n\n".join(made)


def _paper() -> Iterator[str]:
    found = result("paper_tables")
    yield f"The paper's tables: one segment, batch 1, {machine(found)}."
    yield f"Seconds are medians of up to {found['rounds']} rounds (none begins after a minute), PyTorch eager and ONNX"
    yield "Runtime taking turns, weights untrained; a FLOP count is twice the MACs."
    yield "Rows without seconds came later: times of one table are of one machine and one set of versions."
    yield "SDR needs trained models of every row, and stands there where results are supplied (`--sdr`)."
    for table in found["tables"]:
        yield from ("", f"### {table['title']}", "")
        column = next(iter(table["rows"][0]))
        with_sdr = any(row["sdr_db"] is not None for row in table["rows"])
        heads = [
            column,
            "FLOPs",
            "MACs",
            "parameters",
            "activations",
            *(f"s, {n}" for n in RUNTIMES.values()),
        ]
        yield "| " + " | ".join([*heads, *(["SDR"] if with_sdr else [])]) + " |"
        yield "|" + "---|" * (len(heads) + with_sdr)
        for row in table["rows"]:
            sdr = "–" if row["sdr_db"] is None else f"{row['sdr_db']:.2f} dB"
            cells = [
                f"{row[column]}, {row['segment_seconds']:g} s",
                f"{row['flops'] / 1e9:.1f} G",
                f"{row['macs'] / 1e9:.1f} G",
                f"{row['parameters']:,}",
                f"{row['activations'] / 1e6:.0f} M",
                *(_seconds(row["seconds"].get(name)) for name in RUNTIMES),
                *([sdr] if with_sdr else []),
            ]
            yield "| " + " | ".join(cells) + " |"


def _seconds(found: float | None) -> str:
    """Rows that came later have none until all are timed again, on one machine."""
    return "–" if found is None else f"{found:.2f}"


def _thrice() -> Iterator[str]:
    found = result("bench_thrice")
    runs, said = found["runs"], found["agreement"]
    yield "### The same benchmark three times in a row"
    yield ""
    yield f"Trained HTDemucs, {machine(found)}, {found['rounds']} rounds each. " + (
        "The rankings are the same" if said["same_ranking"] else "The rankings differ"
    ) + (
        ", and so are the ratios within their intervals." if not said["ratios_apart"]
        else f"; these ratios differ by more than their intervals: {', '.join(said['ratios_apart'])}."
    )  # fmt: skip
    yield ""
    yield "| times faster | " + " | ".join(f"run {n + 1}" for n in range(len(runs))) + " |"
    yield "|" + "---|" * (len(runs) + 1)
    best_first = runs[0]["ranking"]
    for engine in best_first:
        for other in ("torch", "demucs"):
            if engine not in ("torch", "demucs"):
                name = f"{engine} than {other}"
                yield f"| {name} | " + " | ".join(interval(run["times_faster"][name]) for run in runs) + " |"
    for number, quiet in enumerate(said["quiet"]):
        if not quiet:
            yield ""
            yield f"Noise in run {number + 1}: {'; '.join(runs[number]['noise']['remarks'])}."


def _multitrack() -> Iterator[str]:
    found = result("report_eval")
    tracks = next(iter(found["tracks"].values()))
    minutes = sum(track["seconds"] for track in tracks) / 60
    sources = [*found["model"]["sources"], "all"]
    yield "### A rendered multitrack on three engines"
    yield ""
    yield f"Trained HTDemucs, {len(tracks)} tracks of `benchmarks/multitrack.py`, {minutes:.1f} minutes, SDR in dB."
    yield ""
    yield "| metric | engine | " + " | ".join(sources) + " | largest difference of any track |"
    yield "|" + "---|" * (len(sources) + 3)
    for metric in found["metrics"]:
        for engine, values in found["summary"][metric].items():
            apart = found["differences"][metric].get(engine)
            most = "" if apart is None else f"{abs(apart['largest']):.0e} dB"
            cells = ["–" if values[s] is None else f"{values[s]:.2f}" for s in sources]
            yield "| " + " | ".join([metric, engine, *cells, most]) + " |"
