"""Ranges are what NumPy finds in the tensors themselves, and hazards what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import changed_bundle, tiny_files, tiny_manifest
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper

from mrsep_deploy.bundle import RANGES_FILE, Bundle, write_bundle
from mrsep_deploy.errors import BundleError, ExportError, UsageError
from mrsep_deploy.precision.hazards import predict
from mrsep_deploy.precision.plan import PrecisionPlan
from mrsep_deploy.precision.proof_record import Hazard
from mrsep_deploy.precision.ranges import Calibration, Range, from_json, load, store, to_json
from mrsep_deploy.verification.calibration import STEP, measure
from mrsep_deploy.verification.tracks import Track, builtin_tracks, with_stems

BARE = PrecisionPlan("float16", ())
Array = NDArray[np.float32]


def tracks(bundle: Bundle, *names: str) -> list[Track]:
    return [track for track in builtin_tracks(bundle.manifest) if track.name in names]


def with_nodes(
    folder: Path, nodes: list[NodeProto], constants: Mapping[str, Array], last: str = "made"
) -> Bundle:
    """The tiny bundle whose waveform branch computes ``made`` from ``waveform``, then repeats and offsets it."""

    def change(graph: GraphProto) -> None:
        for node in graph.node:
            node.input[:] = [last if name == "waveform" else name for name in node.input]
        kept = list(graph.node)
        del graph.node[:]
        graph.node.extend([*nodes, *kept])
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())

    return changed_bundle(folder / "made", tiny_manifest(), change)


def scaled(folder: Path, factor: float) -> Bundle:
    """The waveform times a constant."""
    nodes = [helper.make_node("Mul", ["waveform", "factor"], ["made"], "scale/Mul")]
    return with_nodes(folder, nodes, {"factor": np.array(factor, np.float32)})


# --- ranges


def test_ranges_are_those_of_the_tensor(tmp_path: Path) -> None:
    bundle = scaled(tmp_path, 3.0)
    shape = bundle.manifest.tensor("mix").shape[1:]
    mix = np.random.RandomState(0).standard_normal((shape[0], 3 * shape[1] // 4)).astype(np.float32)
    found = measure(bundle, [with_stems("noise", mix, {})], 1)
    assert found.signals == {"noise": 1}
    waveform, made = found.ranges["branch.time"]["waveform"], found.ranges["branch.time"]["made"]
    assert made.largest == pytest.approx(3 * waveform.largest, rel=1e-6)
    assert made.rms == pytest.approx(3 * waveform.rms, rel=1e-6)
    assert made.quietest == pytest.approx(made.rms, rel=1e-6)
    # what is computed only by moving numbers has no range of its own
    assert "repeated" not in found.ranges["branch.time"]
    assert waveform.rms == pytest.approx(1, abs=0.01)  # the branch is normalised
    assert 0 < waveform.smallest < waveform.largest


def test_zeros_do_not_count_as_small(tmp_path: Path) -> None:
    bundle = scaled(tmp_path, 1e-5)
    found = measure(bundle, tracks(bundle, "click", "silence"), 1).ranges["branch.time"]["made"]
    assert found.smallest > 0
    assert found.quietest > 0
    silent = measure(bundle, tracks(bundle, "silence"), 1).ranges["branch.time"]["made"]
    assert silent == Range(0, 0, 0, 0, 0, 0)


def test_tiny_is_the_share_below_the_smallest_normal_number(tmp_path: Path) -> None:
    bundle = scaled(tmp_path, 1e-7)
    found = measure(bundle, tracks(bundle, "noise"), 1).ranges["branch.time"]["made"]
    assert found.tiny > 0.5
    assert measure(bundle, tracks(bundle, "noise"), 1).ranges["branch.time"]["waveform"].tiny < 0.01


def test_cancellation_is_measured(tmp_path: Path) -> None:
    """The difference of two nearly equal channels: its terms are large, their sum is small."""
    kernel = np.array([[[1.0], [-0.99]], [[1.0], [0.0]]], np.float32)
    nodes = [
        helper.make_node("Slice", ["waveform", "first", "second", "axis"], ["left"], "twice/Slice"),
        helper.make_node("Concat", ["left", "left"], ["same"], "twice/Concat", axis=1),
        helper.make_node("Conv", ["same", "kernel"], ["made"], "difference/Conv"),
    ]
    places = {name: np.array([n], np.int64) for name, n in (("first", 0), ("second", 1), ("axis", 1))}
    bundle = with_nodes(tmp_path, nodes, {"kernel": kernel, **places})  # type: ignore[dict-item]
    measured = measure(bundle, tracks(bundle, "noise"), 1)
    found = measured.ranges["branch.time"]["made"]
    expected = np.sqrt((1 + 0.99**2 + 1) / (0.01**2 + 1))
    assert found.amplification == pytest.approx(expected, rel=1e-4)
    assert measured.ranges["branch.time"]["waveform"].amplification == 0


def test_what_is_not_finite_in_float32_is_an_error(tmp_path: Path) -> None:
    bundle = scaled(tmp_path, np.inf)
    with pytest.raises(ExportError, match=r"made in stage branch\.time is not finite in float32 on silence"):
        measure(bundle, tracks(bundle, "silence"), 1)


def test_large_tensors_are_sampled_on_all_rows(tmp_path: Path) -> None:
    assert all(size % STEP for size in (2, 4, 8, 512, 1024, 2048, 4096))


# --- the file


def test_ranges_survive_the_file(tmp_path: Path) -> None:
    bundle = scaled(tmp_path, 2.0)
    assert load(bundle) is None
    calibrated = store(bundle, measure(bundle, tracks(bundle, "music", "noise"), 1))
    found = load(calibrated)
    assert found is not None
    assert from_json(to_json(found)) == found
    assert dict(found.signals) == {"music": 1, "noise": 1}
    assert RANGES_FILE in calibrated.manifest.files
    # everything else is as it was
    assert replace(calibrated.manifest, files={}) == replace(bundle.manifest, files={})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "has no field 'format'"),
        ("[", "not valid JSON"),
        ('{"format": "x", "format_version": 1, "signals": {}, "stages": {}}', "format is 'x', expected"),
        (
            '{"format": "mrsep-deploy ranges", "format_version": 2, "signals": {}, "stages": {}}',
            "format_version",
        ),
        (
            '{"format": "mrsep-deploy ranges", "format_version": 1, "signals": {"a": "b"}, "stages": {}}',
            r"signals\['a'\] is 'b', expected ",
        ),
        (
            '{"format": "mrsep-deploy ranges", "format_version": 1, "signals": {}, "stages": {"a": {"b": [1]}}}',
            "expected a list of at least length 6",
        ),
    ],
)
def test_damaged_ranges_are_refused(text: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        from_json(text.encode())


def test_only_float32_is_calibrated(tmp_path: Path) -> None:
    manifest = replace(tiny_manifest(), precision="float16")
    bundle = write_bundle(tmp_path / "low", manifest, tiny_files(manifest), overwrite=False)
    with pytest.raises(UsageError, match="ranges are measured in float32"):
        measure(bundle, [], 1)


# --- hazards


def hazards(bundle: Bundle, plan: PrecisionPlan = BARE) -> dict[tuple[str, str], Hazard]:
    """By node and kind."""
    found = predict(bundle, plan, measure(bundle, tracks(bundle, "music", "noise"), 1))
    return {(hazard.node, hazard.kind): hazard for hazard in found}


def test_overflow_is_predicted_where_it_happens(tmp_path: Path) -> None:
    found = hazards(scaled(tmp_path, 1e6))
    assert found["scale/Mul", "overflow"].number > 65504
    assert found["scale/Mul", "overflow"].tensor == "made"
    # the constant itself is beyond float16, too
    assert found["scale/Mul", "constant"].tensor == "factor"


def test_nodes_kept_in_float32_are_no_hazard(tmp_path: Path) -> None:
    plan = replace(BARE, keep={"branch.time": ("scale/*", "repeat/*")})
    assert not hazards(scaled(tmp_path, 1e6), plan)


def test_underflow_and_lost_constants_are_predicted(tmp_path: Path) -> None:
    found = hazards(scaled(tmp_path, 1e-8))
    assert found["scale/Mul", "underflow"].number < 6.1e-5
    assert found["scale/Mul", "constant"].number == pytest.approx(1)


def test_what_is_safe_is_not_reported(tmp_path: Path) -> None:
    assert not hazards(scaled(tmp_path, 0.5))


def test_headroom_is_reported(tmp_path: Path) -> None:
    assert ("scale/Mul", "near overflow") in hazards(scaled(tmp_path, 8192.0))


def test_bfloat16_has_the_range_of_float32(tmp_path: Path) -> None:
    plan = PrecisionPlan("bfloat16", ())
    assert not hazards(scaled(tmp_path, 2.0**40), plan)


def test_stages_without_ranges_are_passed_over(tmp_path: Path) -> None:
    assert predict(scaled(tmp_path, 0.5), BARE, Calibration({}, {})) == []
