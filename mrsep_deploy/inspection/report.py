"""An inspection as tables and bars for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from mrsep_deploy.bundle.manifest import TensorSpec
from mrsep_deploy.bundle.provenance import Check
from mrsep_deploy.inspection.inspect import FusionReport, Inspection
from mrsep_deploy.terminal.tables import count, decibels, file_size, shape, table

SNR_NOTE = "SNR of the graphs in dB against PyTorch in float64; last, PyTorch's own in float32."
BAR_WIDTH = 30
_EIGHTHS = "▏▎▍▌▋▊▉█"


def print_inspection(screen: Console, found: Inspection) -> None:
    """Everything, section by section."""
    screen.print(found.name, style="bold")
    screen.print(_facts(found))
    for title, body in _sections(found, screen.encoding):
        screen.print(f"\n{title}", style="bold")
        screen.print(body)
    if found.whole is not None:
        screen.print(f"\n{SNR_NOTE}", style="dim")


def _sections(found: Inspection, encoding: str) -> Iterator[tuple[str, RenderableType]]:
    yield "Branches", branch_table(found)
    yield "Stages", stage_table(found)
    if found.fusion:
        yield "Fusion weights", _fusion(found.fusion, encoding)


def _facts(found: Inspection) -> Table:
    facts = Table.grid(padding=(0, 2, 0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for name, value in _fact_rows(found):
        facts.add_row(name, Text(value))
    return facts


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
        yield (
            "files",
            f"{len(found.files)}, {file_size(sum(found.files.values()))}, hashes as in the manifest",
        )
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
    """How finely each branch sees time and frequency."""
    columns = ("branch", "window", "hop", "bin spacing", "bins × frames", "parameters", "MACs")
    made = table(*columns, right=columns[1:])
    for branch in found.branches:
        costs = (count(branch.parameters), count(branch.macs))
        if branch.window:
            window, hop = f"{branch.window_ms:.1f} ms", f"{branch.hop_ms:.1f} ms"
            size = f"{branch.bins} × {branch.frames}"
            made.add_row(branch.name, window, hop, f"{branch.bin_hz:.2f} Hz", size, *costs)
        else:
            made.add_row(branch.name, "–", "–", "–", f"{branch.frames} samples", *costs)
    return made


def stage_table(found: Inspection) -> Table:
    """The graphs: shapes, costs and, where they were checked, how true they are."""
    checked = found.whole is not None
    numbers = ("parameters", "MACs", *(("SNR", "PyTorch") if checked else ()))
    made = table("stage", "in", "out", *numbers, right=numbers)
    for stage in found.graphs:
        costs = (count(stage.parameters), count(stage.macs))
        made.add_row(
            stage.name, _main(stage.inputs), _main(stage.outputs), *costs, *_snr(stage.check, checked)
        )
    ends = (_main(found.stages[0].inputs), _main(found.stages[-1].outputs))
    totals = (count(sum(stage.parameters for stage in found.graphs)), count(found.macs))
    made.add_row("whole", *ends, *totals, *_snr(found.whole, checked), style="bold")
    if found.whole_device is not None:
        made.add_row("on a device", "", "", "", "", *_snr(found.whole_device, checked))
    return made


def _snr(check: Check | None, checked: bool) -> tuple[str, ...]:
    if not checked:
        return ()
    return ("–", "–") if check is None else (decibels(check.exported.snr), decibels(check.pytorch.snr))


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
