"""Opening what takes part, and comparing its stems with PyTorch's in float64."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acceptance.contenders import TORCH_WAYS, Contender, OurContender, TorchContender
from acceptance.groups import Group
from acceptance.rows import Ledger, Values
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines import engine_class
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.precision.names import Precision
from mrsep_deploy.precision.requested import in_precision
from mrsep_deploy.runtime.schedule import MODES, Mode

GPU_ENGINES = ("ort-cuda", "ort-trt", "trt", "trt-rtx")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
CPU_MODES: tuple[Mode, ...] = ("sequential", "concurrent")
COMPILE_SECONDS = 150.0
_MIB = 2**20


@dataclass
class Field:
    """The contenders of a group that are ready, and what they gave."""

    group: Group
    mix: NDArray[np.float32]
    exact: NDArray[np.float64]
    ready: dict[str, Contender] = field(default_factory=dict)
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)


def open_all(ledger: Ledger, lanes: Field, model: Any, compiles: bool = True) -> None:
    # What matters most comes first, in case time runs out; compiling takes longest and comes last.
    for way in TORCH_WAYS[:-1]:
        _open(ledger, lanes, f"torch {way}", functools.partial(TorchContender, way, model, lanes.mix))
    for bundle in lanes.group.bundles:
        for engine in GPU_ENGINES:
            for precision in (each for each in PRECISIONS if each in engine_class(engine).precisions):
                for mode in _modes(bundle):
                    _open_ours(ledger, lanes, bundle, engine, precision, mode)
    for mode in CPU_MODES:
        _open_ours(ledger, lanes, lanes.group.bundles[0], "torch", "fp32", mode, race=False)
    if not compiles:
        return
    compiled = TORCH_WAYS[-1]
    _open(
        ledger,
        lanes,
        f"torch {compiled}",
        lambda: TorchContender(compiled, model, lanes.mix),
        COMPILE_SECONDS,
    )


def _modes(bundle: Bundle) -> tuple[Mode, ...]:
    """A whole graph has one branch, nothing to run side by side."""
    return ("sequential", "graph") if bundle.manifest.layout == "whole" else MODES


def _open_ours(
    ledger: Ledger,
    lanes: Field,
    bundle: Bundle,
    engine: str,
    precision: Precision,
    mode: Mode,
    race: bool = True,
) -> None:
    manifest = bundle.manifest

    def make() -> Contender:
        return OurContender(
            in_precision(bundle, precision), engine, mode, precision, lanes.mix, lanes.group.checkpoint
        )

    name = f"{engine}{'' if race else ' (CPU)'} {precision} {manifest.layout} {mode}"
    _open(ledger, lanes, name, make, race=race)


def _open(
    ledger: Ledger,
    lanes: Field,
    name: str,
    make: Callable[[], Contender],
    limit: float = 120.0,
    race: bool = True,
) -> None:
    """Open a contender, run it, compare its stems; keep it if it takes part in the race."""

    def work() -> Values:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before, began = torch.cuda.mem_get_info()[0], time.perf_counter()
        held = torch.cuda.memory_allocated()
        contender = make()
        try:
            stems = contender.run().copy()
            opened = time.perf_counter() - began
            again = contender.run()
            values = {
                **_parity(stems, lanes),
                "same_again": bool(np.array_equal(stems, again)),
                "open_seconds": opened,
                "taken_mib": (before - torch.cuda.mem_get_info()[0]) / _MIB,
                "torch_peak_mib": (torch.cuda.max_memory_allocated() - held) / _MIB,
            }
            if isinstance(contender, OurContender):
                values.update(_against_sequential(contender, stems, lanes))
                values["slots_alike"] = all(np.array_equal(stems, each) for each in contender.slots())
                values["buffers_mib"] = contender.separator.engine.device.memory_used() / _MIB
        except BaseException:
            contender.close()
            raise
        if race:
            lanes.ready[name] = contender
        else:
            contender.close()
        lanes.outputs[name] = stems
        return values

    ledger.measure("parity", f"{lanes.group.name}: {name}", work, limit, again=True)


def _parity(stems: NDArray[Any], lanes: Field) -> dict[str, Any]:
    """SNR of all stems, and of each, against float64; not a number anywhere counts as no signal."""
    sources = lanes.group.bundles[0].manifest.model.sources
    each = {
        source: Deviation.between(stems[:, index], lanes.exact[:, index]).snr
        for index, source in enumerate(sources)
    }
    return {
        "snr_db": Deviation.between(stems, lanes.exact).snr,
        "snr_worst_stem_db": min(each.values()),
        "snr_stems_db": each,
        "max_abs_error": float(np.abs(stems - lanes.exact).max()),
        "max_abs": float(np.abs(lanes.exact).max()),
    }


def _against_sequential(contender: OurContender, stems: NDArray[Any], lanes: Field) -> dict[str, Any]:
    """How far a mode is from the sequential one of the same engine; bit for bit it should be the same."""
    name = next((n for n in lanes.outputs if _sequential_of(contender, n)), None)
    if name is None:
        return {}
    other = lanes.outputs[name]
    return {
        "identical_to_sequential": bool(np.array_equal(stems, other)),
        "max_abs_from_sequential": float(np.abs(stems - other).max()),
    }


def _sequential_of(contender: OurContender, name: str) -> bool:
    return name.replace(" (CPU)", "") == contender.name.replace(contender.mode, "sequential")
