"""bfloat16 in the processor's own units: what computes in it, what stays in float32, and who chooses that."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from goldens import Export, golden
from wide_terminal import run

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines import openvino, openvino_pins
from mrsep_deploy.engines.contract import Engine, EngineOptions
from mrsep_deploy.engines.onnxruntime import OnnxRuntimeEngine
from mrsep_deploy.engines.openvino import OpenVinoEngine
from mrsep_deploy.errors import EngineError, EngineUnavailableError, UsageError
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.precision.convert_bundle import convert_bundle
from mrsep_deploy.precision.plan import PrecisionPlan, default_plan
from mrsep_deploy.precision.requested import keeping
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.verification import stage_plan
from mrsep_deploy.verification.chain import Chain
from mrsep_deploy.verification.job import Request
from mrsep_deploy.verification.stage_plan import StagePlan, StageRow, choose_stages

pytest.importorskip("openvino")

NAME = "htdemucs"
BF16 = EngineOptions(threads=1, precision="bf16")

units = pytest.mark.skipif(
    not openvino.bfloat16_units(), reason="this processor has no bfloat16 units (AVX512-BF16 or AMX)"
)


@pytest.fixture
def bundle(exports: Export) -> Bundle:
    return exports(NAME)


def chain_of(bundle: Bundle, options: EngineOptions = BF16, engine: type[Engine] = OpenVinoEngine) -> Chain:
    return Chain(bundle, engine(options))


def low(bundle: Bundle, folder: Path, plan: PrecisionPlan | None = None) -> Bundle:
    plan = plan or default_plan("bfloat16", bundle.manifest.float32)
    return convert_bundle(bundle, plan, folder, twins=False, proved=False).made_from(bundle)


def stems(bundle: Bundle, options: EngineOptions = BF16, engine: type[Engine] = OpenVinoEngine) -> Any:
    """Of the golden mix, one segment."""
    model = bundle.manifest.model
    mix = np.zeros((1, model.audio_channels, model.segment_samples), np.float32)
    given = golden(NAME).mix[:, : mix.shape[-1]]
    mix[0, :, : given.shape[-1]] = given
    with chain_of(bundle, options, engine) as chain:
        return chain.stems(mix)


def worst(found: Any, exact: Any) -> float:
    return min(Deviation.between(found[:, n], exact[:, n]).snr for n in range(exact.shape[1]))


# --- what computes in it


@units
def test_products_compute_in_bfloat16_and_what_the_rules_keep_in_float32(
    bundle: Bundle, tmp_path: Path
) -> None:
    """Norms that OpenVINO makes one operator of (MVN) are its own: they read and write bfloat16."""
    found: Counter[tuple[str, str]] = Counter()
    with chain_of(low(bundle, tmp_path / "low")) as chain:
        for name, runner in chain.runners.items():
            if name in {stage.name for stage in bundle.manifest.graph_stages}:
                for operator in vars(runner)["compiled"].get_runtime_model().get_ordered_ops():
                    info = operator.get_rt_info()
                    found[info["layerType"].astype(str), info["runtimePrecision"].astype(str)] += 1
    assert found["FullyConnected", "bf16"] > 4 * found["FullyConnected", "f32"]
    assert found["Convolution", "bf16"] > 0
    for kept in ("Reduce", "Deconvolution"):
        assert found[kept, "f32"] > 0
        assert found[kept, "bf16"] == 0


@units
def test_stems_lose_what_the_emulation_of_the_same_graphs_says(bundle: Bundle, tmp_path: Path) -> None:
    """Another library, which rounds after every operator in float32: 1 dB apart, and 2 are allowed. Without the rules
    more is lost."""
    exact = stems(bundle, EngineOptions(threads=1))
    made = low(bundle, tmp_path / "kept")
    kept = worst(stems(made), exact)
    assert abs(kept - worst(stems(made, engine=OnnxRuntimeEngine), exact)) < 2
    bare = worst(stems(low(bundle, tmp_path / "bare", PrecisionPlan("bfloat16", ()))), exact)
    assert bare < kept


@units
def test_a_stage_that_is_kept_whole_computes_as_in_float32(bundle: Bundle, tmp_path: Path) -> None:
    plan = default_plan("bfloat16", bundle.manifest.float32)
    everything = {stage.name: ("*",) for stage in bundle.manifest.graph_stages}
    found = stems(low(bundle, tmp_path / "low", replace(plan, keep=everything)))
    np.testing.assert_array_equal(found, stems(bundle, EngineOptions(threads=1)))


@units
def test_the_cache_gives_the_same_again(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a stage that computes in bfloat16, and for one that is kept whole."""
    plan = replace(default_plan("bfloat16", bundle.manifest.float32), keep={"decoder.time": ("*",)})
    made = low(bundle, tmp_path / "low", plan)
    first = stems(made)

    def never(*_given: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(OpenVinoEngine, "_compile", never)
    np.testing.assert_array_equal(stems(made), first)


# --- where it cannot be


def test_a_processor_without_the_units_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "bfloat16_units", lambda: False)
    with pytest.raises(EngineUnavailableError, match="has no bfloat16 units") as caught:
        OpenVinoEngine(BF16)
    assert "--engine ort, which emulates it" in caught.value.fix
    OpenVinoEngine(EngineOptions(precision="fp16"))


@units
def test_a_bundle_without_float32_graphs_is_told(bundle: Bundle, tmp_path: Path) -> None:
    low(bundle, tmp_path / "low")
    with pytest.raises(EngineError, match="holds bfloat16 graphs alone") as caught:
        chain_of(Bundle.open(tmp_path / "low"))
    assert "--engine ort" in caught.value.fix


@units
def test_an_openvino_that_ignores_the_marks_is_told(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = low(bundle, tmp_path / "low")
    monkeypatch.setitem(openvino_pins.MARK, "name", "unheard_of")
    engine = OpenVinoEngine(BF16)
    engine.cache.folder = tmp_path / "empty"
    with pytest.raises(EngineError, match="does not keep operators in float32"):
        Chain(made, engine)


# --- which stages, by proof


def rows(*seconds: tuple[float, float]) -> list[StageRow]:
    return [StageRow(f"s{n}", exact, fast, 0.0) for n, (exact, fast) in enumerate(seconds)]


def groups(*excess: float) -> list[stage_plan.Group]:
    return [stage_plan.Group(f"s{n}", (), np.array([each])) for n, each in enumerate(excess)]


@pytest.mark.parametrize(
    ("seconds", "excess", "chosen"),
    [
        ([(2, 1), (2, 1)], [0.3, 0.3], {"s0", "s1"}),
        ([(2, 1), (4, 1)], [0.5, 0.5], {"s1"}),  # the errors add up
        ([(2, 1), (2, 1), (2.5, 1)], [0.3, 0.3, 0.7], {"s0", "s1"}),  # two small gains are more than a large one
        ([(2, 1), (1, 2)], [0.1, 0.1], {"s0"}),  # slower in bfloat16
        ([(2, 1), (2, 1)], [0.1, math.inf], {"s0"}),
        ([(1, 2)], [0.1], set()),
        ([(2, 1)], [0.9], set()),
    ],
)  # fmt: skip
def test_the_fastest_choice_that_is_allowed(
    seconds: list[tuple[float, float]], excess: list[float], chosen: set[str]
) -> None:
    assert stage_plan._fastest(rows(*seconds), groups(*excess), 0.8) == chosen


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "song.wav"
    soundfile.write(path, golden(f"song_{NAME}").mix.T, 44100, "FLOAT")
    return path


def chosen_at(bundle: Bundle, song: Path, limit: float) -> StagePlan:
    asked = Request(bundle, "openvino", "bf16", audio=(song,), limit=limit, threads=1, bisect=True)
    return choose_stages(asked)


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage takes half the time in bfloat16, whatever this machine does."""
    names = ("encoder", "bottleneck", "decoder")

    def times(job: Any, *_more: object) -> dict[str, tuple[float, float]]:
        stages = job.request.bundle.manifest.graph_stages
        assert all(stage.name.startswith(names) for stage in stages)
        return {stage.name: (2.0, 1.0) for stage in stages}

    monkeypatch.setattr(stage_plan, "_times", times)


@units
@pytest.mark.usefixtures("faster")
def test_stages_are_chosen_until_the_limit_is_kept(bundle: Bundle, song: Path) -> None:
    everything = chosen_at(bundle, song, 30)
    assert all(row.chosen for row in everything.rows)
    assert not everything.plan.keep
    assert everything.snr is not None
    stricter = chosen_at(bundle, song, everything.snr + 3)
    assert 0 < sum(row.chosen for row in stricter.rows) < len(stricter.rows)
    assert stricter.proof.passes
    assert stricter.snr is not None
    assert stricter.snr >= everything.snr + 3
    with pytest.raises(
        UsageError, match="no stage of htdemucs gains time in bfloat16 and keeps every stem at 110 dB"
    ):
        chosen_at(bundle, song, 110)


@units
def test_stages_are_timed_in_both(bundle: Bundle, song: Path) -> None:
    """So small a model may gain nothing anywhere: what is chosen does."""
    with contextlib.suppress(UsageError):
        found = chosen_at(bundle, song, 25)
        assert all(row.low < row.exact for row in found.rows if row.chosen)
        assert all(row.exact > 0 and row.low > 0 for row in found.rows)


# --- the command line


@units
@pytest.mark.usefixtures("faster")
def test_run_follows_what_build_has_proved(bundle: Bundle, song: Path, tmp_path: Path) -> None:
    common = (str(bundle.path), "--engine", "openvino", "--precision", "bf16", "--threads", "1")
    limit = str((chosen_at(bundle, song, 30).snr or 0) + 3)
    built = run("build", *common, "--music", str(song), "--limit", limit, "--json", "-q")
    assert built.exit_code == 0, built.output
    found = json.loads(built.stdout)
    kept = [row["stage"] for row in found["stages"] if row["precision"] == "fp32"]
    assert kept
    assert found["snr_db"] >= float(limit)
    shown = run("build", *common, "--music", str(song), "--limit", limit)
    assert "runs in" in shown.stdout
    assert f"{', '.join(kept)} in float32" in shown.stdout
    assert "--precision bf16" in shown.stdout
    done = run("run", str(song), "-n", *common, "-o", str(tmp_path / "stems"))
    assert done.exit_code == 0, done.output
    assert f"{', '.join(kept)} in float32, as measured here" in done.stderr
    assert "dB or more proved" in done.stderr
    assert "emulated" not in done.stderr
    with Separator(bundle, engine="openvino", precision="bf16", threads=1) as separator:
        expected = keeping(bundle, "bf16", dict.fromkeys(kept, ("*",)))
        assert separator.bundle.digest == expected.digest


@units
def test_bench_measures_it_in_a_process_of_its_own(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    done = run(
        "bench", str(bundle.path), "--engine", "openvino", "--precision", "fp32,bf16", "--against", "none",
        "--rounds", "1", "--threads", "1", "--limit", "25", "--json", str(target),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert {row["precision"]: row["status"] for row in json.loads(target.read_text())["rows"]} == {
        "fp32": "ok",
        "bf16": "ok",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--limit", "40"), "--limit is for --music"),
        (("--music", "SONG"), "give --engine openvino --precision bf16"),
        (("--music", "SONG", "--precision", "fp16"), "give --engine openvino --precision bf16"),
    ],
)
def test_songs_without_a_choice(bundle: Bundle, song: Path, given: tuple[str, ...], message: str) -> None:
    arguments = [str(song) if each == "SONG" else each for each in given]
    done = run("build", str(bundle.path), "--engine", "openvino", *arguments)
    assert done.exit_code == 2
    assert message in done.output


@units
def test_the_doctor_says_what_openvino_computes_in() -> None:
    found = json.loads(run("doctor", "--json").stdout)
    (row,) = (each for each in found["engines"] if each["name"] == "openvino")
    assert row["precisions"] == ["fp32", "fp16", "bf16"]
    assert row["emulated"] == ["fp16"]
    assert {"AVX512-BF16", "AMX-BF16"} & set(found["machine"]["instructions"])


def test_the_doctor_lists_no_precision_that_the_processor_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "bfloat16_units", lambda: False)
    found = json.loads(run("doctor", "--json").stdout)
    (row,) = (each for each in found["engines"] if each["name"] == "openvino")
    assert row["precisions"] == ["fp32", "fp16"]
