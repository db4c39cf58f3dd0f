"""A converted bundle is proved on the probe before it is written: what it records, warns of, and refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import changed_bundle, tiny_bundle, tiny_files, tiny_manifest
from goldens import Export, Lower
from onnx import GraphProto, NodeProto, helper, numpy_helper

from mrsep_deploy.bundle import Bundle, write_bundle
from mrsep_deploy.errors import BundleError
from mrsep_deploy.files import paths
from mrsep_deploy.precision.convert_bundle import convert_bundle, derived_bundle
from mrsep_deploy.precision.names import Low
from mrsep_deploy.precision.plan import PrecisionPlan, default_plan
from mrsep_deploy.precision.proof_record import EXACT_DB, LEAST_DB, Hazard, Proof, StageProof, read_proof
from mrsep_deploy.precision.ranges import Calibration, Range, store

BARE = PrecisionPlan("float16", ())


pytestmark = pytest.mark.usefixtures("home")


def computing(folder: Path, nodes: list[NodeProto], **constants: float) -> Bundle:
    """The tiny bundle whose branch ``branch.time`` computes ``made`` from ``waveform`` before all else."""

    def change(graph: GraphProto) -> None:
        for node in graph.node:
            node.input[:] = ["made" if name == "waveform" else name for name in node.input]
        kept = list(graph.node)
        del graph.node[:]
        graph.node.extend([*nodes, *kept])
        values = {name: np.array(value, np.float32) for name, value in constants.items()}
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())

    return changed_bundle(folder / "changed", tiny_manifest(), change)


def times(*factors: float) -> tuple[list[NodeProto], dict[str, float]]:
    """Nodes ``gain0/Mul``, ``gain1/Mul`` and so on that multiply ``waveform`` by one constant after the other."""
    names = ["waveform", *(f"made{index}" for index in range(len(factors) - 1)), "made"]
    nodes = [
        helper.make_node("Mul", [names[index], f"factor{index}"], [names[index + 1]], f"gain{index}/Mul")
        for index in range(len(factors))
    ]
    return nodes, {f"factor{index}": factor for index, factor in enumerate(factors)}


def converted(bundle: Bundle, folder: Path, plan: PrecisionPlan = BARE) -> Proof:
    return proof_of(convert_bundle(bundle, plan, folder / "low"))


def proof_of(low: Bundle) -> Proof:
    found = read_proof(low.manifest)
    assert found is not None
    return found


# --- what is recorded


def test_snr_of_every_stage_and_stem(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    found = converted(bundle, tmp_path)
    assert set(found.stages) == {stage.name for stage in bundle.manifest.graph_stages}
    assert set(found.stems) == set(bundle.manifest.model.sources)
    # one rounding to 11 bits of the sum, one of what is summed
    assert all(60 < stage.snr_db < 85 and stage.weakest is None for stage in found.stages.values())
    assert all(60 < snr < 85 for snr in found.stems.values())
    assert found.hazards == ()
    assert read_proof(bundle.manifest) is None


def test_stems_are_those_of_all_stages_in_a_row(exports: Export, lowered: Lower) -> None:
    """Of a model whose stages follow each other: stems lose more than most stages alone."""
    bundle, found = exports("htdemucs"), proof_of(lowered("htdemucs"))
    assert set(found.stages) == {stage.name for stage in bundle.manifest.graph_stages}
    assert all(stage.snr_db > 50 for stage in found.stages.values())
    assert min(found.stems.values()) < max(stage.snr_db for stage in found.stages.values())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_both_types_and_any_batch(tmp_path: Path, precision: Low, batch: int) -> None:
    bundle = tiny_bundle(tmp_path, batch=batch)
    low = derived_bundle(bundle, default_plan(precision, ()))
    found = read_proof(low.manifest)
    assert found is not None
    assert low.manifest.batch == batch
    # three bits of the mantissa are 18 dB
    least, most = (60, 85) if precision == "float16" else (42, 67)
    assert all(least < stage.snr_db < most for stage in found.stages.values())


def test_a_whole_layout_is_proved(exports: Export, lowered: Lower) -> None:
    bundle = exports("htdemucs_n_short", "whole")
    found = proof_of(lowered("htdemucs_n_short", layout="whole"))
    # all graphs between the transforms are one; what fuses the branches' signals comes behind them
    assert set(found.stages) == {stage.name for stage in bundle.manifest.graph_stages}
    assert "core" in found.stages
    assert all(stage.snr_db >= LEAST_DB for stage in found.stages.values())


def test_what_is_exact_has_the_largest_number(tmp_path: Path) -> None:
    plan = replace(BARE, keep={"branch.time": ("*",), "branch.16": ("*",)})
    found = converted(tiny_bundle(tmp_path), tmp_path, plan)
    assert {stage.snr_db for stage in found.stages.values()} == {EXACT_DB}
    assert set(found.stems.values()) == {EXACT_DB}


def test_equal_conversions_are_equal_bytes(tmp_path: Path) -> None:
    nodes, constants = times(1.7)
    bundle = computing(tmp_path, nodes, **constants)
    digests = {convert_bundle(bundle, BARE, tmp_path / name).digest for name in ("a", "b")}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "checks", [{}, {"stages": 1}, {"stages": {}, "stems": {"drums": "loud"}}], ids=["none", "kind", "value"]
)
def test_checks_of_another_form_are_no_proof(tmp_path: Path, checks: Mapping[str, object]) -> None:
    manifest = replace(tiny_manifest(), checks=checks, provenance={"precision": {"converter": 1}})
    bundle = write_bundle(tmp_path / "tiny", manifest, tiny_files(manifest), overwrite=False)
    assert read_proof(bundle.manifest) is None


def test_an_unproved_bundle_claims_nothing(tmp_path: Path) -> None:
    low = convert_bundle(tiny_bundle(tmp_path), BARE, tmp_path / "low", proved=False)
    assert low.manifest.checks == {}
    assert read_proof(low.manifest) is None


# --- what is refused


@pytest.mark.parametrize(
    ("factors", "node", "found"),
    [
        ((2.0**10, 2.0**10, 2.0**-9), "gain1/Mul", "infinity"),
        ((2.0**10, 2.0**10, 0.0), "gain1/Mul", "infinity"),
    ],
    ids=["infinity", "infinity times zero"],
)
def test_overflow_is_refused_at_its_node(
    tmp_path: Path, factors: tuple[float, ...], node: str, found: str
) -> None:
    nodes, constants = times(*factors)
    bundle = computing(tmp_path, nodes, **constants)
    message = f"stage branch.time leaves the range of float16 at the node {node}: {found} on the probe"
    with pytest.raises(BundleError, match=message) as raised:
        convert_bundle(bundle, BARE, tmp_path / "low")
    assert raised.value.fix is not None
    assert "verify --bisect" in raised.value.fix
    with pytest.raises(BundleError, match=message):
        derived_bundle(bundle, BARE)
    kept = [each for each in paths.cache_dir("bundles").iterdir() if each.suffix != ".lock"]
    assert not kept, "what is refused is not kept"


def test_a_number_divided_by_infinity_is_refused(tmp_path: Path) -> None:
    """The result is zero, which is finite: only the divisor shows it."""
    nodes, constants = times(2.0**10, 2.0**10)
    nodes[-1].output[0] = "divisor"
    nodes += [
        helper.make_node("Add", ["divisor", "factor0"], ["shifted"], "shift/Add"),
        helper.make_node("Div", ["waveform", "shifted"], ["made"], "divide/Div"),
    ]
    bundle = computing(tmp_path, nodes, **constants)
    with pytest.raises(BundleError, match=r"at the node gain1/Mul: infinity on the probe"):
        convert_bundle(bundle, BARE, tmp_path / "low")


def test_zero_divided_by_zero_is_refused(tmp_path: Path) -> None:
    """Differences of squares that are below the smallest number: NaN without any infinity."""
    nodes = [
        helper.make_node("Mul", ["waveform", "tiny"], ["small"], "small/Mul"),
        helper.make_node("Mul", ["small", "small"], ["square"], "square/Mul"),
        helper.make_node("Div", ["square", "square"], ["made"], "divide/Div"),
    ]
    bundle = computing(tmp_path, nodes, tiny=1e-4)
    with pytest.raises(BundleError, match=r"stage branch\.time .* at the node divide/Div: NaN on the probe"):
        convert_bundle(bundle, BARE, tmp_path / "low")


def test_an_overflow_on_the_way_out_of_a_float32_node_is_that_of_its_reader(tmp_path: Path) -> None:
    nodes, constants = times(2.0**10, 2.0**10, 2.0**-10)
    bundle = computing(tmp_path, nodes, **constants)
    plan = replace(BARE, keep={"branch.time": ("gain1/Mul",)})
    with pytest.raises(BundleError, match=r"at the node gain2/Mul: infinity"):
        convert_bundle(bundle, plan, tmp_path / "low")


def test_bfloat16_does_not_overflow_there(tmp_path: Path) -> None:
    nodes, constants = times(2.0**15, 2.0**15, 2.0**-30)
    found = converted(computing(tmp_path, nodes, **constants), tmp_path, PrecisionPlan("bfloat16", ()))
    assert found.hazards == ()


def test_a_model_that_breaks_in_float32_is_told_apart(tmp_path: Path) -> None:
    nodes, constants = times(np.inf)
    bundle = computing(tmp_path, nodes, **constants)
    with pytest.raises(BundleError, match=r"of stage branch\.time is not finite in float32 on the probe"):
        convert_bundle(bundle, BARE, tmp_path / "low")


# --- what is warned of


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("precision", "large"), [("float16", 512.0), ("bfloat16", 64.0)])
def test_a_weak_stage_is_warned_of_with_its_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, precision: Low, large: float
) -> None:
    """A large number added and taken away again leaves the few bits that lower precision has beside it."""
    nodes = [
        helper.make_node("Add", ["waveform", "large"], ["raised"], "raise/Add"),
        helper.make_node("Sub", ["raised", "large"], ["made"], "lower/Sub"),
    ]
    bundle = computing(tmp_path, nodes, large=large)
    found = converted(bundle, tmp_path, PrecisionPlan(precision, ()))
    assert found.stages["branch.time"].snr_db < LEAST_DB
    # the sum itself is near to what it should be; what remains of it is not
    assert found.stages["branch.time"].weakest == "lower/Sub"
    assert found.stages["branch.16"].weakest is None
    (message,) = messages(caplog)
    assert f"tiny in {precision}: stage branch.time keeps" in message
    assert "expected at least 40; most is lost at lower/Sub" in message
    assert "\n" not in message


def test_a_cached_bundle_warns_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes, constants = times(2.0**13, 2.0**-13)
    bundle = computing(tmp_path, nodes, **constants)
    for _ in range(2):
        derived_bundle(bundle, BARE)
    first, second = messages(caplog)
    assert first == second
    assert "stage branch.time comes near overflow at gain0/Mul" in first


def test_what_comes_near_overflow_on_the_probe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes, constants = times(2.0**13, 2.0**-13)
    found = converted(computing(tmp_path, nodes, **constants), tmp_path)
    (hazard,) = found.hazards
    assert (hazard.stage, hazard.node, hazard.kind, hazard.signals) == (
        *("branch.time", "gain0/Mul", "near overflow", "probe"),
    )
    assert hazard.number is not None
    assert 65504 / 4 < hazard.number < 65504
    (message,) = messages(caplog)
    assert f"at gain0/Mul: {hazard.number:.3g} on the probe, the largest number is 6.55e+04" in message


def test_overflow_by_calibrated_ranges(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Louder songs than the probe were measured before: what they overflow is told, in one line for a stage."""
    nodes, constants = times(2.0**5, 2.0**-2, 2.0**-3)
    quiet = Range(1.0, 0.1, 0.5, 0.5, 0.0, 0.0)
    loud = {"made0": replace_largest(quiet, 2e5), "made1": replace_largest(quiet, 7e4)}
    bundle = computing(tmp_path, nodes, **constants)
    assert converted(bundle, tmp_path).hazards == ()
    calibrated = store(bundle, Calibration({"song": 1}, {"branch.time": {**loud, "made": quiet}}))
    found = converted(calibrated, tmp_path / "again")
    assert [(each.node, each.kind, each.signals) for each in found.hazards] == [
        ("gain0/Mul", "overflow", "calibration"),
        ("gain1/Mul", "overflow", "calibration"),
    ]
    (message,) = messages(caplog)
    assert "branch.time overflows at gain0/Mul: 2e+05 by the calibrated ranges" in message
    assert "and 1 more there" in message


def replace_largest(found: Range, largest: float) -> Range:
    return Range(largest, found.smallest, found.rms, found.quietest, found.tiny, found.amplification)


def test_a_lost_constant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [helper.make_node("Add", ["waveform", "epsilon"], ["made"], "shift/Add")]
    found = converted(computing(tmp_path, nodes, epsilon=1e-9), tmp_path)
    assert found.hazards == (Hazard("branch.time", "shift/Add", "epsilon", "constant", 1.0, "graph"),)
    (message,) = messages(caplog)
    assert "stage branch.time loses the constant epsilon at shift/Add" in message


def test_warnings_are_one_line_for_each_stage_and_kind() -> None:
    hazards = [Hazard("a", f"n{index}", f"t{index}", "near overflow", 3e4, "probe") for index in range(4)]
    hazards.append(Hazard("b", "m", "u", "near overflow", 2e4, "probe"))
    proof = Proof({"a": StageProof(20.0, "n0"), "b": StageProof(60.0)}, {}, tuple(hazards))
    lines = proof.warnings("float16")
    assert len(lines) == 3
    assert lines[1].endswith(", and 3 more there")
