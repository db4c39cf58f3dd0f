"""What breaks float16, planted on purpose: conversion names it, ``verify`` finds it, ``--bisect`` what to keep."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import planted
import pytest
from goldens import Export
from onnx import GraphProto

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.errors import BundleError
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.precision.convert_bundle import convert_bundle
from mrsep_deploy.precision.convert_graph import StageGraph, typed_graph
from mrsep_deploy.precision.emulate import rounded_graph
from mrsep_deploy.precision.plan import PrecisionPlan, default_plan, read_plan, write_plan
from mrsep_deploy.precision.watch import Watched, run_graph
from mrsep_deploy.verification.bisect import Bisection, bisect
from mrsep_deploy.verification.reference import BundleReference
from mrsep_deploy.verification.results import Verification
from mrsep_deploy.verification.tracks import Track, builtin_tracks
from mrsep_deploy.verification.verify import verify

Edit = Callable[[GraphProto], None]

LIMIT = 35.0
"""In dB: what is planted misses it by far, and the rounding of everything else does not."""


def without(bundle: Bundle, *rules: str) -> PrecisionPlan:
    """The default plan, with the rules of the bundle's family, without some of its rules."""
    plan = default_plan("float16", bundle.manifest.float32)
    return replace(plan, rules=tuple(rule for rule in plan.rules if rule not in rules))


class Case:
    """A float32 bundle that something was planted in, and what is listened to."""

    def __init__(self, bundle: Bundle, tracks: list[Track], folder: Path, limit: float = LIMIT) -> None:
        self.bundle, self.tracks, self.folder, self.limit = bundle, tracks, folder, limit
        self.engine = choose("ort", EngineOptions(1, precision="fp16")).engine
        self.reference = BundleReference(bundle, 1)
        self.number = 0

    def verify(self, plan: PrecisionPlan) -> Verification:
        self.number += 1
        low = convert_bundle(self.bundle, plan, self.folder / f"low{self.number}", proved=False)
        return verify(low, self.engine, self.reference, self.tracks, self.limit, gate=math.inf)

    def search(self, plan: PrecisionPlan, found: Verification) -> Bisection:
        """A bisection whose plan, written and read again, passes."""
        result = bisect(self.bundle, self.engine, plan, found.probes)
        assert result.proved
        write_plan(result.plan, self.folder / "plan.json")
        assert self.verify(read_plan(self.folder / "plan.json")).passes
        return result

    def close(self) -> None:
        self.reference.close()
        self.engine.close()


@pytest.fixture
def case(exports: Export, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Case]:
    """The golden HTDemucs with a hazard in one stage."""
    stage, edit, names = request.param
    bundle = planted.edited(exports("htdemucs"), stage, edit, tmp_path / "bundle")
    tracks = [track for track in builtin_tracks(bundle.manifest) if track.name in names]
    made = Case(bundle, tracks, tmp_path)
    yield made
    made.close()


def nodes(found: Bisection) -> set[str]:
    return {node for group in found.kept for node in group.nodes}


def worst_stage(found: Verification) -> str:
    snr = {stage.stage: min(figures.snr for figures in stage.tensors.values()) for stage in found.stages}
    return min(snr, key=lambda stage: snr[stage])


def stages(found: Bisection) -> set[str]:
    return {group.stage for group in found.kept}


# --- conversion


@pytest.mark.parametrize(
    ("model", "stage", "edit", "rules", "node"),
    [
        (
            *("htdemucs", "encoder.2048", planted.loud_norm, ("norms", "chains", "residual")),
            "encoder.0.dconv.layers.0.norm/Mul_2",
        ),
        ("htdemucs", "decoder.time", planted.saturating_gain, ("chains",), "planted/Gain"),
        ("htdemucs_n", "bottleneck", planted.overflowing_divisor, ("attention", "chains"), "planted/Divisor"),
    ],
    ids=["norm", "gain", "divisor"],
)
def test_conversion_refuses_what_overflows(
    exports: Export, tmp_path: Path, model: str, stage: str, edit: Edit, rules: tuple[str, ...], node: str
) -> None:
    """Named at the stage and the node where it begins; the default plan averts it, or is refused as well."""
    bundle = planted.edited(exports(model), stage, edit, tmp_path / "bundle")
    message = (
        f"stage {stage} leaves the range of float16 at the node {re.escape(node)}: infinity on the probe"
    )
    with pytest.raises(BundleError, match=message) as found:
        convert_bundle(bundle, without(bundle, *rules), tmp_path / "low")
    assert "--bisect" in found.value.fix
    assert not (tmp_path / "low").exists()


def test_an_overflow_that_leaves_no_trace_is_found(exports: Export, tmp_path: Path) -> None:
    """``x / inf = 0``: all that leaves the stage is finite, and far from float32."""
    edit = planted.overflowing_divisor
    bundle = planted.edited(exports("htdemucs_n"), "bottleneck", edit, tmp_path / "bundle")
    stage = next(each for each in bundle.manifest.stages if each.name == "bottleneck")
    low = typed_graph(StageGraph.of(bundle, stage), without(bundle, "attention", "chains"))
    random = np.random.default_rng(0)
    shapes = {name: bundle.manifest.tensor(name).shape for name in stage.inputs}
    given = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    outputs = run_graph(rounded_graph(low.data), stage.name, given, stage.outputs)
    exact = run_graph(bundle.graph_bytes(stage), stage.name, given, stage.outputs)
    assert all(np.isfinite(value).all() for value in outputs.values())
    assert min(Deviation.between(outputs[name], exact[name]).snr for name in stage.outputs) < LIMIT
    with pytest.raises(BundleError, match=r"at the node planted/Divisor: infinity"):
        Watched(low.data, stage, "float16", low.low).run(given)


def test_conversion_warns_of_an_epsilon_that_is_lost(
    exports: Export, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The probe is not silent, so nothing is divided by zero on it: the constant itself tells."""
    bundle = planted.edited(exports("htdemucs"), "encoder.time", planted.tiny_epsilon, tmp_path / "bundle")
    convert_bundle(bundle, without(bundle), tmp_path / "safe")
    assert not caplog.records
    convert_bundle(bundle, without(bundle, "norms", "constants", "chains", "residual"), tmp_path / "low")
    assert any(
        "stage encoder.time loses the constant planted.epsilon at planted/Add" in record.getMessage()
        for record in caplog.records
    )


# --- verification


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [("encoder.2048", planted.loud_norm, ("music", "loud music"))], indirect=True, ids=["norm"]
)
def test_a_norm_in_float16_on_a_loud_signal(case: Case) -> None:
    assert case.verify(without(case.bundle)).passes
    plan = without(case.bundle, "norms", "chains", "residual")
    found = case.verify(plan)
    assert not found.passes
    worst = worst_stage(found)
    assert worst == "encoder.2048"
    result = case.search(plan, found)
    assert result.stages[0].stage == "encoder.2048"
    assert stages(result) == {"encoder.2048"}
    norm = "encoder.0.dconv.layers.0.norm/"
    # the squares and their mean; what touches neither can stay
    assert {f"{norm}Mul_2", f"{norm}ReduceMean_2"} <= nodes(result)
    assert all(name.startswith("encoder.0.dconv.layers.0") for name in nodes(result))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [("encoder.time", planted.tiny_epsilon, ("music", "silence"))], indirect=True, ids=["epsilon"]
)
def test_an_epsilon_that_is_zero_in_float16(case: Case) -> None:
    assert case.verify(without(case.bundle)).passes
    plan = without(case.bundle, "norms", "constants", "chains", "residual")
    found = case.verify(plan)
    assert any("stage encoder.time" in failure and "NaN" in failure for failure in found.failures)
    # silence is too quiet to be judged, but not to be NaN
    assert {stem.track for stem in found.stems if stem.failures} == {"silence"}
    result = case.search(plan, found)
    assert result.stages[0].stage == "encoder.time"
    assert stages(result) == {"encoder.time"}
    assert nodes(result) == {"planted/Add", "planted/Sqrt"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [("decoder.time", planted.saturating_gain, ("music", "noise"))], indirect=True, ids=["gain"]
)
def test_a_gain_that_saturates_one_decoder(case: Case) -> None:
    plan = without(case.bundle, "chains")
    found = case.verify(plan)
    worst = worst_stage(found)
    assert not found.passes
    assert worst == "decoder.time"
    result = case.search(plan, found)
    assert result.stages[0].stage == "decoder.time"
    assert stages(result) == {"decoder.time"}
    assert {"planted/Gain", "tdecoder.1.glu/Mul"} <= nodes(result)
    assert nodes(result) <= {"planted/Gain", "tdecoder.1.glu/Mul", "planted/Unscale", "planted/Undo"}


@pytest.mark.slow
def test_loss_without_a_single_culprit(exports: Export, tmp_path: Path) -> None:
    """Where rounding errors of many nodes add up, some return to float32, and most do not."""
    bundle = exports("htdemucs")
    tracks = [track for track in builtin_tracks(bundle.manifest) if track.name == "music"]
    made = Case(bundle, tracks, tmp_path, limit=54.0)
    try:
        found = made.verify(without(bundle))
        assert not found.passes
        result = made.search(without(bundle), found)
    finally:
        made.close()
    low = sum(len(group.nodes) for group in result.stages)
    assert 0 < len(nodes(result)) < low / 3
    # the stage that loses most is where most is kept
    kept = [group.stage for group in result.kept]
    assert max(set(kept), key=kept.count) == result.stages[0].stage
