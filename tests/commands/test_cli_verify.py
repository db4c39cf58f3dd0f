"""``mrsep-deploy verify``: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from bundles import CHANNELS, SAMPLE_RATE, SAMPLES, changed_bundle, tiny_bundle, tiny_manifest
from click.testing import CliRunner, Result
from onnx import GraphProto, helper, numpy_helper

from mrsep_deploy.bundle import Bundle, write_archive
from mrsep_deploy.commands import main
from mrsep_deploy.precision import hazards
from mrsep_deploy.precision.plan import PrecisionPlan, default_plan, read_plan, write_plan
from mrsep_deploy.precision.ranges import load
from mrsep_deploy.verification import calibration
from mrsep_deploy.verification.tracks import builtin_tracks

Verify = Callable[..., Result]


@pytest.fixture
def verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Verify:
    """The command, in an empty folder."""
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return lambda *arguments: CliRunner().invoke(main.main, ["verify", *map(str, arguments)])


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path, "tiny")


def saturating(folder: Path) -> Bundle:
    """The tiny bundle, its waveform amplified beyond float16 and brought back by a second stage of its graph."""
    manifest = tiny_manifest(name="saturating")

    def change(graph: GraphProto) -> None:
        output = graph.output[0].name
        for node in graph.node:
            node.output[:] = ["inner" if name == output else name for name in node.output]
        kernel = np.eye(manifest.tensor(output).shape[1])[..., None]
        for name, value in (("gain", 1e6), ("undo", 1e-6), ("kernel", kernel)):
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        graph.node.extend(
            [
                helper.make_node("Mul", ["inner", "gain"], ["loud"], "repeat/Gain"),
                helper.make_node("Conv", ["loud", "kernel"], ["same"], "repeat/Conv"),
                helper.make_node("Mul", ["same", "undo"], [output], "repeat/Undo"),
            ]
        )

    return changed_bundle(folder / "saturating", manifest, change)


# --- passing and failing


def test_a_bundle_against_itself_passes(verify: Verify, bundle: Bundle) -> None:
    done = verify(bundle.path, "--engine", "ort", "--against", bundle.path)
    assert done.exit_code == 0, done.output
    for expected in ("branch.time", "full-scale sine", "Limit 100 dB", "float32 in any order", "passed"):
        assert expected in done.output


def test_json_is_json_and_complete(verify: Verify, bundle: Bundle, tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    soundfile.write(song, np.ones((SAMPLES, CHANNELS)) * 0.5, SAMPLE_RATE)
    done = verify(bundle.path, "--engine", "ort", "--against", bundle.path, "--audio", song, "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["passes"] is True
    assert found["limits"]["reason"]
    assert [(stem["track"], stem["source"]) for stem in found["stems"]] == [
        ("song.wav", "drums"),
        ("song.wav", "other"),
    ]
    assert found["stems"][0]["snr_db"] is None  # equal
    assert set(found["stages"]["branch.16"]["estimate_16"]) >= {"snr_db", "si_sdr_db", "worst_at", "nan"}


def test_openvino_is_verified_too(verify: Verify, bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    done = verify(bundle.path, "--engine", "openvino", "--against", bundle.path)
    assert done.exit_code == 0, done.output
    assert "OpenVINO" in done.output


def test_saturation_fails_and_bisection_writes_a_plan(verify: Verify, tmp_path: Path) -> None:
    bundle = saturating(tmp_path)
    # without the rules, which would keep the gain in float32
    write_plan(PrecisionPlan("float16", ()), "bare.json")
    failed = verify(bundle.path, "--plan", "bare.json", "--limit", "40")
    assert failed.exit_code == 1
    assert "stage branch.time leaves the range of float16 at the node repeat/Gain" in failed.output
    assert "verify --bisect" in failed.output
    assert not Path("saturating.plan.json").exists()
    found = verify(bundle.path, "--plan", "bare.json", "--limit", "40", "--bisect")
    assert found.exit_code == 0, found.output
    assert "infinite values" in found.output
    assert "No GPU has run this" in found.output
    assert "segments ran in float32" not in found.output
    assert "repeat/Gain" in found.output
    plan = read_plan("saturating.plan.json")
    assert set(plan.keep) == {"branch.time"}
    assert {"repeat/Gain", "repeat/Conv"} <= set(plan.keep["branch.time"])
    assert verify(bundle.path, "--plan", "saturating.plan.json", "--limit", "40", "-q").exit_code == 0
    again = verify(bundle.path, "--plan", "bare.json", "--limit", "40", "--bisect")
    assert again.exit_code == 2
    assert "saturating.plan.json exists" in again.output


def test_bisection_as_json(verify: Verify, tmp_path: Path) -> None:
    bundle = saturating(tmp_path)
    write_plan(PrecisionPlan("float16", ()), "bare.json")
    arguments = (bundle.path, "--plan", "bare.json", "--limit", "40", "--bisect", "--output", "plan.json")
    found = json.loads(verify(*arguments, "--json").stdout)
    assert found["passes"] is False
    assert found["with_plan"]["passes"] is True
    assert (found["gate"], found["with_plan"]["gate"]) == (None, None)
    assert [stem["track"] for stem in found["stems"] if not stem["passes"]]
    (search,) = found["bisection"]
    assert search["proved"] is True
    assert search["stages"][0]["stage"] == "branch.time"


def test_a_gate_that_leaves_nothing_to_bisect_on(verify: Verify, tmp_path: Path) -> None:
    """One that is given holds for a bisection as well; silence is not above it, but infinite by the gain."""
    bundle = saturating(tmp_path)
    write_plan(PrecisionPlan("float16", ()), "bare.json")
    given = (bundle.path, "--plan", "bare.json", "--bisect")
    done = verify(*given, "--gate", "1")
    assert done.exit_code == 2
    assert "all ran in float32 because of the gate" in done.output
    assert "--gate off" in done.output
    assert not Path("saturating.plan.json").exists()


# --- accumulation


def cancelling(folder: Path) -> Bundle:
    """The tiny bundle, its waveform summed over 64 channels whose weights almost cancel: 80,000 times it in between."""
    manifest = tiny_manifest(name="cancelling")

    def change(graph: GraphProto) -> None:
        output = graph.output[0].name
        for node in graph.node:
            node.output[:] = ["inner" if name == output else name for name in node.output]
        spread = np.tile(np.eye(manifest.tensor(output).shape[1]), (16, 1))
        collect = 1e4 * spread.T
        collect[:, 32:] *= -1
        collect[:, :4] += 8 * np.eye(4)
        for name, value in (("spread", spread), ("collect", collect)):
            graph.initializer.append(numpy_helper.from_array(value[..., None].astype(np.float32), name))
        graph.initializer.append(numpy_helper.from_array(np.array(1 / 8, np.float32), "eighth"))
        graph.node.extend(
            [
                helper.make_node("Conv", ["inner", "spread"], ["many"], "repeat/Spread"),
                helper.make_node("Conv", ["many", "collect"], ["few"], "repeat/Collect"),
                helper.make_node("Mul", ["few", "eighth"], [output], "repeat/Scale"),
            ]
        )

    return changed_bundle(folder / "cancelling", manifest, change)


def test_sums_in_float16_are_asked_for_and_named(verify: Verify, tmp_path: Path) -> None:
    bundle = cancelling(tmp_path)
    common = (bundle.path, "--precision", "fp16", "--limit", "40", "--gate", "off")
    expected = verify(*common)
    assert expected.exit_code == 0, expected.output
    assert "accumulates in float32: what is expected" in " ".join(expected.output.split())
    worst = verify(*common, "--accumulation", "float16", "--bisect")
    assert worst.exit_code == 0, worst.output
    said = " ".join(worst.output.split())
    assert "accumulates in float16: the worst case" in said
    assert "stage branch.time" in said
    assert "NaN" in said
    assert read_plan("cancelling.plan.json").keep["branch.time"] == ("repeat/Collect",)


def test_bfloat16_has_no_worse_case(verify: Verify, bundle: Bundle) -> None:
    common = (bundle.path, "--precision", "bf16", "--json", "--gate", "off")
    expected, worst = (
        json.loads(verify(*common, "--accumulation", kind).stdout) for kind in ("float32", "float16")
    )
    assert "no GPU accumulates bfloat16 in 16 bits" in worst["note"]
    assert worst["stems"] == expected["stems"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "accumulation in float16 was asked for with float32 graphs"),
        (
            ("--precision", "fp16", "--engine", "openvino"),
            "engine openvino emulates no accumulation in float16",
        ),
        (("--calibrate",), "--calibrate takes accumulation in float32"),
    ],
)
def test_where_there_is_no_such_accumulation(
    verify: Verify, bundle: Bundle, more: tuple[str, ...], message: str
) -> None:
    if "openvino" in more:
        pytest.importorskip("openvino")
    done = verify(bundle.path, "--accumulation", "float16", *more)
    assert done.exit_code == 2
    assert message in done.stderr


# --- calibration


def test_calibration_stores_ranges_and_predicts(verify: Verify, tmp_path: Path) -> None:
    bundle = saturating(tmp_path)
    done = verify(bundle.path, "--calibrate")
    assert done.exit_code == 0, done.output
    assert "repeat/Gain" in done.output
    assert "overflow" in done.output
    calibrated = Bundle.open(bundle.path)
    ranges = load(calibrated)
    assert ranges is not None
    assert ranges.ranges["branch.time"]["loud"].largest > 65504
    # a calibrated bundle is still a bundle: it runs, archives, and can be calibrated again
    assert write_archive(calibrated, tmp_path / "packed.zip").exists()
    assert load(Bundle.open(tmp_path / "packed.zip")) == ranges
    assert json.loads(verify(bundle.path, "--calibrate", "--json").stdout)["hazards"]
    refused = verify(tmp_path / "packed.zip", "--calibrate")
    assert refused.exit_code == 2
    assert "Unpack it first" in refused.output


def test_the_error_of_a_constant_beyond_float16_is_infinite(verify: Verify, tmp_path: Path) -> None:
    """JSON has no word for that: it is null."""
    bundle = saturating(tmp_path)
    write_plan(PrecisionPlan("float16", ()), "bare.json")
    given = (bundle.path, "--calibrate", "--plan", "bare.json")
    hazards = json.loads(verify(*given, "--json").stdout)["hazards"]
    assert [each["number"] for each in hazards if each["tensor"] == "gain"] == [None]
    assert " inf" in verify(*given).output


def test_prediction_and_calibration_agree_on_names(tmp_path: Path) -> None:
    bundle = saturating(tmp_path)
    measured = calibration.measure(bundle, builtin_tracks(bundle.manifest)[:1], 1)
    found = hazards.predict(bundle, PrecisionPlan("float16", ()), measured)
    assert ("branch.time", "repeat/Gain", "loud") in {(h.stage, h.node, h.tensor) for h in found}


# --- wrong usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bisect",), "--bisect needs"),
        (("--bisect", "--precision", "fp32"), "--bisect needs"),
        (("--output", "plan.json"), "--output is where --bisect writes"),
        (("--calibrate", "--gate", "off"), "--calibrate measures without a gate"),
        (("--calibrate-gate", "--gate", "9"), "--calibrate-gate measures without a gate"),
        (("--plan", "missing.json"), "missing.json cannot be read"),
        (("--precision", "int8"), "Invalid value for '--precision'"),
    ],
)
def test_wrong_usage_is_one_clear_line(
    verify: Verify, bundle: Bundle, arguments: tuple[str, ...], message: str
) -> None:
    done = verify(bundle.path, *arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_a_plan_of_another_precision_is_refused(verify: Verify, bundle: Bundle) -> None:
    write_plan(default_plan("bfloat16", ()), "plan.json")
    done = verify(bundle.path, "--precision", "fp16", "--plan", "plan.json")
    assert done.exit_code == 2
    assert "is a plan for bf16, fp16 was asked for" in done.output


def test_a_bundle_without_its_checkpoint_has_no_reference(verify: Verify, bundle: Bundle) -> None:
    done = verify(bundle.path)
    assert done.exit_code == 1
    assert "checkpoint" in done.output
    assert "Traceback" not in done.output


def test_missing_onnx_is_one_line(verify: Verify, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for arguments in (("--precision", "fp16"), ("--calibrate",)):
        done = verify(bundle.path, *arguments)
        assert done.exit_code == 1
        assert "needs onnx, which is not installed" in done.output
        assert 'pip install "onnx' in done.output
