"""Facts about machine and model beside the times: ceilings, costs, floors."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mrsep_deploy.bench import ceilings
from mrsep_deploy.bench.contenders import Contender
from mrsep_deploy.bench.floor import FAULTY, floor_seconds, stage_macs, times_floor
from mrsep_deploy.bench.results import Result, Row
from mrsep_deploy.bench.workloads import SEGMENTS
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.precision.names import arithmetic
from mrsep_deploy.separation.segments import stride_of

GPU_SECONDS = 300.0


def ceilings_for(contenders: Sequence[Contender], threads: int) -> dict[str, Mapping[str, object]]:
    """What each device that takes part can do at best: ``flop_per_second`` by precision, ``bytes_per_second``.

    Raises:
        EngineError: the processor's could not be measured.
    """
    devices = {contender.device for contender in contenders}
    found: dict[str, Mapping[str, object]] = {}
    if "cpu" in devices:
        rates = ceilings.cpu_ceilings(threads)
        found["cpu"] = {
            # Lower precision is computed in float32 on a CPU.
            "flop_per_second": dict.fromkeys(("fp32", "fp16", "bf16"), rates["flop_per_second"]),
            "bytes_per_second": rates["bytes_per_second"],
            "threads": threads,
            "how": dict(ceilings.HOW),
        }
    if "cuda" in devices:
        found["cuda"] = _gpu_ceilings()
    return found


def _gpu_ceilings() -> Mapping[str, object]:
    """In a process of its own, as a context holds memory; without torch nothing can be said."""
    command = [sys.executable, "-m", "mrsep_deploy.bench.ceilings_cuda"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS)
        found: dict[str, object] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return {"reason": f"the GPU's own speed could not be measured: {error}"}
    return found


def rate_of(contender: Contender, bundle: Bundle) -> str:
    """The precision whose rate bounds a contender: a mixed bundle's is that of most of its graphs."""
    return arithmetic(bundle.manifest) if contender.precision == "mixed" else contender.precision


def floor_of_row(row: Row, bundle: Bundle, result: Result) -> Mapping[str, Any] | None:
    """What a row's run would take at the machine's best, and how many times that it took.

    Args:
        row: with times.
        bundle: what it ran.
        result: with the ceilings, and the model's costs.
    """
    found: Any = result.ceilings.get(row.contender.device, {})
    stages: Any = result.models[row.model]["stages"]
    rate = found.get("flop_per_second", {}).get(rate_of(row.contender, bundle))
    if not rate or row.median is None:
        return None
    manifest = bundle.manifest
    macs = {stage["name"]: stage["macs"] for stage in stages}
    one = floor_seconds(manifest, rate, found["bytes_per_second"], macs)
    runs = 1
    if row.workload != SEGMENTS:
        stride = stride_of(manifest.model.segment_samples, row.contender.overlap)
        samples = round(row.audio_seconds * manifest.model.sample_rate)
        runs = math.ceil(math.ceil(samples / stride) / manifest.batch)
    floor = {name: runs * seconds for name, seconds in one.items()}
    times = times_floor(row.median, floor)
    return {**floor, "times": times, "reason": FAULTY if times is None and floor["floor"] else ""}


def model_facts(bundle: Bundle) -> dict[str, object]:
    """What a bundle is, for the result."""
    manifest = bundle.manifest
    macs, counted = stage_macs(bundle)
    return {
        "name": manifest.name,
        "digest": bundle.digest,
        "family": manifest.model.family,
        "trained": manifest.model.trained,
        "sources": list(manifest.model.sources),
        "layout": manifest.layout,
        "batch": manifest.batch,
        "precision": manifest.precision,
        "sample_rate": manifest.model.sample_rate,
        "segment_seconds": float(manifest.model.segment),
        "parameters": manifest.model.parameters,
        "macs": sum(macs.values()),
        "macs_counted": counted,
        "branches": [asdict(branch) for branch in manifest.branches],
        "stages": [
            {
                "name": stage.name, "kind": stage.kind, "branch": stage.branch,
                "parameters": stage.parameters, "macs": macs.get(stage.name, 0),
            }
            for stage in manifest.stages
        ],
        "fusion": [asdict(shares) for shares in manifest.fusion],
    }  # fmt: skip
