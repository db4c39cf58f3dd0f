"""An inspection as tables and bars for a terminal, and as plain values for ``--json``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich import table as rich_table
from rich.console import Console
from rich.text import Text

from mrsep_deploy.bundle.manifest import Gate, TensorSpec
from mrsep_deploy.bundle.provenance import Check
from mrsep_deploy.files.strict_json import plain
from mrsep_deploy.inspection.inspect import FusionReport, Inspection, StageReport
from mrsep_deploy.terminal.tables import NOTHING, Table, count, decibels, file_size, print_table, shape

SNR_NOTE = "SNR of the graphs in dB against PyTorch in float64; last, PyTorch's own in float32."
BAR_WIDTH = 30
_EIGHTHS = "▏▎▍▌▋▊▉█"


def print_inspection(screen: Console, found: Inspection) -> None:
    """Prints everything, section by section."""
    screen.print(found.name, style="bold")
    facts = rich_table.Table.grid(padding=(0, 2, 0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for name, value in _fact_rows(found):
        facts.add_row(name, Text(value))
    screen.print(facts)
    for made in (branch_table(found), stage_table(found)):
        screen.print(f"\n{made.title}", style="bold")
        print_table(screen, made)
    if found.fusion:
        screen.print("\nFusion weights", style="bold")
        screen.print(_fusion(found.fusion, screen.encoding))


COPIED = (
    "kind", "name", "digest", "layout", "batch", "precision", "opset", "macs", "branches", "files", "gates",
)  # fmt: skip


def to_plain(found: Inspection) -> dict[str, Any]:
    """Returns everything for ``--json``; what is computed from it (entropies, totals, decibels) too."""
    model = {name: value for name, value in vars(found.model).items() if name != "segment"}
    made: dict[str, Any] = plain(
        {
            **{name: getattr(found, name) for name in COPIED},
            "path": found.path,
            "model": {**model, "segment_seconds": float(found.model.segment)},
            "stages": [_plain_stage(stage) for stage in found.stages],
            "fusion": [_plain_fusion(report) for report in found.fusion],
            "whole": _plain_check(found.whole),
            "whole_device": _plain_check(found.whole_device),
            "provenance": {**vars(found.provenance), "tools": dict(found.provenance.tools)},
        }
    )
    return made


def _plain_stage(stage: StageReport) -> dict[str, object]:
    return {
        **vars(stage),
        "inputs": {tensor.name: tensor.shape for tensor in stage.inputs},
        "outputs": {tensor.name: tensor.shape for tensor in stage.outputs},
        "check": _plain_check(stage.check),
    }


def _plain_fusion(report: FusionReport) -> dict[str, object]:
    return {
        "where": report.where,
        "source": report.source,
        "weights": dict(zip(report.resolutions, report.weights, strict=True)),
        "entropy_bits": report.entropy,
        "max_entropy_bits": report.max_entropy,
        "evenness": report.evenness,
    }


def _plain_check(check: Check | None) -> dict[str, float] | None:
    if check is None:
        return None
    return {
        "relative_l2": check.exported.relative,
        "snr_db": check.exported.snr,
        "pytorch_float32_relative_l2": check.pytorch.relative,
        "pytorch_float32_snr_db": check.pytorch.snr,
    }


def _gate(gate: Gate) -> str:
    found = f"{gate.missed} of {gate.tried} segments below it failed" if gate.tried else "not calibrated"
    return f"segments of a crest factor above {gate.crest:g} run in float32 ({found})"


def _fact_rows(found: Inspection) -> Iterator[tuple[str, str]]:
    model, origin = found.model, found.provenance
    segment = float(model.segment)
    yield found.kind, str(found.path)
    yield "family", model.family
    yield "sources", ", ".join(model.sources)
    channels = {1: "mono", 2: "stereo"}.get(model.audio_channels, f"{model.audio_channels} channels")
    yield "audio", f"{model.sample_rate} Hz, {channels}"
    yield "segment", f"{segment:g} s, {model.segment_samples} samples"
    yield "parameters", f"{count(model.parameters)} ({model.parameters})"
    yield "MACs", f"{count(found.macs)} a segment, {count(round(found.macs / segment))} a second of audio"
    if found.kind == "bundle":
        yield "graphs", f"{found.precision}, opset {found.opset}, {found.layout}, batch {found.batch}"
        size = file_size(sum(found.files.values()))
        yield "files", f"{len(found.files)}, {size}, hashes as in the manifest"
        for precision, gate in found.gates.items():
            yield f"{precision} gate", _gate(gate)
    if origin.checkpoint:
        if found.kind == "bundle":
            yield "checkpoint", origin.checkpoint
        yield "sha256", origin.sha256
        yield "weights", f"{origin.klass}, stored as {', '.join(origin.storage)}"
    if not model.trained:
        yield "weights", untrained_note(found)
    if origin.ignored:
        yield "ignored", f"{', '.join(origin.ignored)} (of effect in training only)"
    if origin.exported:
        yield "exported", origin.exported
    if origin.rewrites:
        yield "rewrites", ", ".join(origin.rewrites)
    if origin.tools:
        yield "tools", ", ".join(f"{tool} {version}" for tool, version in origin.tools)


def untrained_note(found: Inspection) -> str:
    """What an untrained model is good for."""
    seed = found.provenance.seed
    weights = "random weights" if seed is None else f"random weights of seed {seed}"
    return f"untrained: {weights}; it runs as fast as a trained model and separates nothing"


def branch_table(found: Inspection) -> Table:
    """Returns how finely each branch sees time and frequency."""
    rows = []
    for branch in found.branches:
        cells = [NOTHING, NOTHING, NOTHING, f"{branch.frames} samples"]
        if branch.window:
            cells = [
                f"{branch.window_ms:.1f} ms",
                f"{branch.hop_ms:.1f} ms",
                f"{branch.bin_hz:.2f} Hz",
                f"{branch.bins} × {branch.frames}",
            ]
        rows.append([branch.name, *cells, count(branch.parameters), count(branch.macs)])
    columns = ("branch", "window", "hop", "bin spacing", "bins × frames", "parameters", "MACs")
    return Table("Branches", columns, rows)


def stage_table(found: Inspection) -> Table:
    """Returns the graphs: shapes, costs and, where they were checked, how true they are."""
    checked = found.whole is not None
    parameters = sum(stage.parameters for stage in found.graphs)
    first, last = found.stages[0].inputs, found.stages[-1].outputs
    whole = StageReport("whole", "", "", first, last, parameters, found.macs, found.whole)
    rows = []
    for stage in (*found.graphs, whole):
        ends, counts = (stage.inputs, stage.outputs), (stage.parameters, stage.macs)
        rows.append([stage.name, *map(_main, ends), *map(count, counts), *_snr(stage.check, checked)])
    strong = [len(rows) - 1]
    if found.whole_device is not None:
        rows.append(["on a device", "", "", "", "", *_snr(found.whole_device, checked)])
    columns = ("stage", "in", "out", "parameters", "MACs", *(("SNR", "PyTorch") if checked else ()))
    return Table("Stages", columns, rows, (0, 1, 2), strong, note=SNR_NOTE if checked else "")


def _snr(check: Check | None, checked: bool) -> list[str]:
    if check is None or not checked:
        return [NOTHING, NOTHING] if checked else []
    return [decibels(check.exported.snr), decibels(check.pytorch.snr)]


def _main(tensors: Sequence[TensorSpec]) -> str:
    """The shape of the tensor that is no skip connection, or of the innermost skip, and how many more."""
    direct = [tensor for tensor in tensors if not tensor.name.startswith("skip")]
    more = f" +{len(tensors) - 1}" if len(tensors) > 1 else ""
    return shape((direct[0] if direct else tensors[-1]).shape) + more


def _fusion(reports: Sequence[FusionReport], encoding: str) -> Text:
    """A bar for every resolution's share, under where it counts and how even the shares are."""
    widest = max(len(name) for report in reports for name in report.resolutions)
    text = Text()
    for report in reports:
        place = report.where if report.source is None else f"{report.where}, {report.source}"
        entropy = f"entropy {report.entropy:.3f} of {report.max_entropy:.3f} bits ({report.evenness:.1%})"
        text.append(f"  {place}").append(f"   {entropy}\n", style="dim")
        for name, weight in zip(report.resolutions, report.weights, strict=True):
            text.append(f"    {name:>{widest}}  ").append(
                f"{bar(weight, encoding=encoding):{BAR_WIDTH}}", "cyan"
            )
            text.append(f" {weight:6.1%}\n")
    text.rstrip()
    return text


def bar(share: float, width: int = BAR_WIDTH, encoding: str = "utf-8") -> str:
    """A share of one as a bar, to an eighth of a character; plain ``#`` where the encoding has no blocks."""
    if not encoding.lower().startswith("utf"):
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")
