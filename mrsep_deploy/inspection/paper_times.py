"""Times for the paper's tables, measured here: PyTorch eager and ONNX Runtime, random weights.

How fast a model runs does not depend on what it has learnt.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from mrsep_deploy.errors import UsageError
from mrsep_deploy.export.exporter import ExportOptions, Progress, export_model
from mrsep_deploy.export.families.family import PaperModel
from mrsep_deploy.export.load import untrained_model
from mrsep_deploy.export.probe import probe_signal
from mrsep_deploy.files.parts import write_file
from mrsep_deploy.inspection.paper import Seconds, read_times
from mrsep_deploy.measuring.rounds import Turn, clocked, race
from mrsep_deploy.process.machine import cpu_budget, cpu_model
from mrsep_deploy.separation.separator import Separator

ROUNDS = 5
ROUND_SECONDS = 60.0
"""No round of a model begins after so long: PyTorch takes minutes for a fusion over four or five resolutions."""
SEED = 0
TOOLS = ("torch", "onnxruntime", "numpy")


def measure(models: Mapping[str, PaperModel], path: Path | None, progress: Progress) -> Seconds:
    """Seconds for one segment of every model, with torch and ONNX Runtime.

    Args:
        models: by key.
        path: where times are kept: what it holds already is not measured again, and every model is added as
            soon as it is measured. None keeps nothing.
        progress: called with what happens now, how many models are done and how many there are.

    Raises:
        UsageError: the file at ``path`` was measured on another machine, or holds no times.
        OutputError: it cannot be written.
    """
    conditions = _conditions()
    found: dict[str, Mapping[str, float]] = {}
    if path is not None and path.exists():
        seconds, before = read_times(path)
        if before != conditions:
            raise UsageError(
                f"the times in {path} were measured on another machine or with other versions, "
                f"expected {', '.join(f'{k} {v}' for k, v in conditions.items())}",
                "Give a new file with --times FILE, or show the old one without --measure.",
            )
        found.update(seconds)
    for done, (key, model) in enumerate(models.items()):
        progress(f"measuring {key}", done, len(models))
        if key in found:
            continue
        found[key] = seconds_of(model)
        if path is not None:
            text = json.dumps({"conditions": conditions, "seconds": found}, indent=2) + "\n"
            write_file(path, text.encode())
    return found


def seconds_of(model: PaperModel) -> dict[str, float]:
    """Medians of up to ``ROUNDS`` runs on a music-like segment, both runtimes in turn after one warm-up run."""
    loaded = untrained_model(model.family, SEED, **model.arguments)
    config, threads = loaded.config, cpu_budget()
    mix = probe_signal(config.audio_channels, config.segment_samples, config.samplerate)[None]
    with tempfile.TemporaryDirectory(prefix="mrsep-deploy-paper-") as folder:
        bundle = export_model(loaded, model.key, Path(folder) / "bundle", ExportOptions())
        with Separator(bundle, engine="ort", threads=threads) as separator:
            tensor = torch.from_numpy(mix)
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                with torch.inference_mode():
                    return _medians(
                        {
                            "torch": clocked(lambda _turn: loaded.model(tensor)),
                            "ort": clocked(lambda _turn: separator.run_segments(mix)),
                        }
                    )
            finally:
                torch.set_num_threads(before)


def _medians(contenders: Mapping[str, Turn]) -> dict[str, float]:
    found = race(contenders, ROUNDS, seconds=ROUND_SECONDS, through=(Exception,))
    if found.interrupted:
        raise KeyboardInterrupt
    return {name: round(statistics.median(values), 4) for name, values in found.times.items()}


def _conditions() -> dict[str, object]:
    """What times depend on; times under other conditions do not belong into one table."""
    return {
        "cpu": cpu_model(),
        "cores": cpu_budget(),
        "system": f"{platform.system()} {platform.machine()}",
        "rounds": ROUNDS,
        **{tool: importlib.metadata.version(tool) for tool in TOOLS},
    }
