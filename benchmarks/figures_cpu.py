"""The figures of docs/cpu.md, from the result files that they were measured into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from figures_source import ENGINES, MODELS, interval, machine, result
from machine_info import RESULTS

BASELINES = {"torch": "PyTorch", "demucs": "demucs 4.1.0"}
TARGETS = {"best": 2.5, "ort": 1.5, "plain": 1.3}
"""Times faster that were set as goals: the best engine and ONNX Runtime against the baseline of the model (demucs
for HTDemucs, PyTorch for HTDemucs_n), OpenVINO against OpenVINO on the plain export."""


def cpu() -> str:
    """All that was measured, as Markdown; what was not has no section."""
    sections = {
        "run_speed": (_goals, _segments),
        "whole_runs": (_whole_runs,),
        "profile": (_floors,),
        "rewrite_gains": (_rewrites,),
    }
    made = [section for kind, group in sections.items() if measured(kind) for section in group]
    return "\n\n".join("\n".join(section()) for section in made)


def measured(kind: str) -> list[str]:
    """The models for which there is such a result."""
    return [model for model in MODELS if (RESULTS / f"{kind}_{model}.json").exists()]


def goals(model: str) -> dict[str, tuple[float, float]]:
    """What was reached and what was set, by goal; the plain export counts where that was measured."""
    speed = result(f"run_speed_{model}")
    baseline = "demucs" if model == "trained" else "torch"
    # An engine in its faster mode: that is what `build` measures and `run` then takes.
    by_engine = {
        engine: max(
            speed["times_faster"][f"{label} than {baseline}"]["median"]
            for label in speed["seconds"]
            if label.partition(" ")[0] == engine
        )
        for engine in ENGINES
    }
    found = {"best": max(by_engine.values()), "ort": by_engine["ort"]}
    if model in measured("rewrite_gains"):
        gains = result(f"rewrite_gains_{model}")["engines"]["openvino"]["gain"]
        found["plain"] = gains["plain"]["median"]
    return {goal: (reached, TARGETS[goal]) for goal, reached in found.items()}


def _goals() -> Iterator[str]:
    yield "### Goals, reached and missed"
    yield ""
    yield "Times faster, one segment, medians of interleaved rounds, every engine in the faster of its modes; the"
    yield "baseline is demucs 4.1.0 for HTDemucs, this package's PyTorch reference for HTDemucs_n."
    yield ""
    yield "| model | goal | set | measured | |"
    yield "|---|---|---|---|---|"
    names = {
        "best": "best engine, than the baseline",
        "ort": "ONNX Runtime, than the baseline",
        "plain": "OpenVINO, than OpenVINO on the plain export",
    }
    for model, title in MODELS.items():
        for goal, (reached, aim) in goals(model).items():
            verdict = "reached" if reached >= aim else "missed"
            yield f"| {title} | {names[goal]} | {aim:.1f} | {reached:.2f} | {verdict} |"
    yield ""
    yield " ".join(_at_the_floor(model) for model in MODELS)


def _at_the_floor(model: str) -> str:
    speed = result(f"run_speed_{model}")
    baseline = "demucs" if model == "trained" else "torch"
    if speed["times_the_floor"]["ort"] is None:
        return f"The floor of {MODELS[model]}, was measured too high."
    floor = speed["seconds"]["ort"]["median"] / speed["times_the_floor"]["ort"]
    times = speed["seconds"][baseline]["median"] / floor
    return f"At its floor {MODELS[model]}, would take {floor:.2f} s and be {times:.1f} times faster than the baseline."


def _whole_runs() -> Iterator[str]:
    first = result(f"whole_runs_{measured('whole_runs')[0]}")
    yield "### From a file to stems"
    yield ""
    yield f"A FLAC file of {first['seconds_of_music']:g} s on {machine(first)}: the process starts, imports, loads"
    yield f"from the cache, decodes, separates, writes wav files. Medians of {first['rounds']} rounds in turn; the"
    yield "ratio is to the first row of the model, with its 95 % interval; memory is the process' peak."
    yield ""
    yield "| model | contender | seconds | × real time | times faster | peak memory |"
    yield "|---|---|---|---|---|---|"
    for model in measured("whole_runs"):
        found, title = result(f"whole_runs_{model}"), MODELS[model]
        baseline = next(iter(found["seconds"]))
        for name, seconds in found["seconds"].items():
            ratio = "1" if name == baseline else interval(found["times_faster"][f"{name} than {baseline}"])
            cells = [
                title,
                _contender(name),
                f"{seconds['median']:.1f}",
                f"{found['times_realtime'][name]:.1f}",
                ratio,
                f"{found['peak_mib'][name] * 2**20 / 1e6:,.0f} MB",
            ]
            yield "| " + " | ".join(cells) + " |"
        for remark in found["noise"]["remarks"]:
            yield f"| {title} | noise | {remark} | | | |"


def _segments() -> Iterator[str]:
    yield "### One segment"
    yield ""
    yield "Peak memory of the process, seconds until the first stems with compiled stages in the cache, and how many"
    yield "times the floor a segment takes: FLOPs over the rate of a matrix product, or bytes over that of a copy,"
    yield "both as measured there. SNR against float64 is that of the worst stem above -60 dBFS; ≥ marks results that"
    yield "counted quieter stems too."
    yield ""
    yield "| model | contender | seconds | × floor | first stems, s | peak memory | SNR of the worst stem |"
    yield "|---|---|---|---|---|---|---|"
    for model, title in MODELS.items():
        found = result(f"run_speed_{model}")
        for name, seconds in found["seconds"].items():
            cells = [
                title,
                _contender(name),
                f"{seconds['median']:.2f}",
                _times(found["times_the_floor"][name]),
                f"{found['start_up'][name]['warm']['total']:.1f}",
                f"{found['peak_mib'][name] * 2**20 / 1e6:,.0f} MB",
                _snr(found, name),
            ]
            yield "| " + " | ".join(cells) + " |"


def _snr(found: Mapping[str, Any], name: str) -> str:
    """SNR of the worst stem above -60 dBFS; of older results the worst of all stems, which is no better than that."""
    if "worst_stem_snr_db" in found:
        return f"{found['worst_stem_snr_db'][name]:.0f} dB"
    return f"≥ {found['snr_against_float64'][name]:.0f} dB"


def _times(times: float | None) -> str:
    """Times the floor; a dash where that was measured too high, as nothing takes less."""
    return "–" if times is None or times < 1 else f"{times:.1f}"


def _floors() -> Iterator[str]:
    yield "### Where the time goes"
    yield ""
    yield "Milliseconds by stage (branches added up), with the floor of the stage and how many times that it takes."
    yield "From `mrsep-deploy bench MODEL --profile`, which slows a run down a little."
    for model in measured("profile"):
        found, title = result(f"profile_{model}"), MODELS[model]
        profiles = {profile["engine"]: profile for profile in found["profiles"]}
        yield ""
        yield f"| {title} | floor | " + " | ".join(f"{ENGINES[e]} | × floor" for e in profiles) + " |"
        yield "|---|---|" + "---|---|" * len(profiles)
        by_engine = {engine: _by_kind(profile) for engine, profile in profiles.items()}
        for kind, (_, floor) in next(iter(by_engine.values())).items():
            cells = [kind, f"{1e3 * floor:.0f}"]
            for times in by_engine.values():
                seconds = times[kind][0]
                cells += [f"{1e3 * seconds:.0f}", _times(seconds / floor) if floor > 1e-3 else ""]
            yield "| " + " | ".join(cells) + " |"


def _by_kind(profile: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Seconds and floor by what stages do: ``encoder.2048`` and ``encoder.time`` are both encoder."""
    found: dict[str, tuple[float, float]] = {}
    for stage in profile["stages"]:
        kind = stage["name"].partition(".")[0]
        seconds, floor = found.get(kind, (0.0, 0.0))
        found[kind] = (seconds + stage["seconds"], floor + stage["floor"]["floor"])
    whole = tuple(sum(each) for each in zip(*found.values(), strict=True))
    return {**found, "all": (whole[0], whole[1])}


def _rewrites() -> Iterator[str]:
    yield "### What each rewrite is worth"
    yield ""
    yield "Time of a segment without the rewrite over the time with all of them, in the same round; above 1 it wins. An"
    yield "interval that holds 1 is no win and no loss. `plain` is the published modules through the same exporter, one"
    yield "graph with nothing rewritten. `benchmarks/rewrite_gains.py` measures it."
    yield ""
    found = {model: result(f"rewrite_gains_{model}") for model in measured("rewrite_gains")}
    columns = [(model, engine) for model in found for engine in ENGINES]
    yield "| without | " + " | ".join(f"{MODELS[m].split(',')[0]}, {ENGINES[e]}" for m, e in columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for name in (*next(iter(found.values()))["rewrites"], "plain"):
        gains = (found[model]["engines"][engine]["gain"].get(name) for model, engine in columns)
        yield f"| {name} | " + " | ".join("–" if gain is None else interval(gain) for gain in gains) + " |"


def _contender(name: str) -> str:
    engine, _, rest = name.partition(" ")
    return f"{ {**ENGINES, **BASELINES}[engine] }{f', {rest}' if rest else ''}"
