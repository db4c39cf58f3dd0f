"""GPU acceptance where there is no GPU: its tables, its statistics, and that no row takes another along."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundles import tiny_bundle, tiny_manifest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_acceptance
from acceptance import measure, parity, prepare, rows, shim
from acceptance.contenders import Contender, OurContender
from acceptance.figures import spread
from acceptance.groups import Group
from acceptance.report import Report, to_html, to_json, write_report
from acceptance.rows import Journal, Ledger, Row, Unavailable
from acceptance.timeline import timeline_svg

from mrsep_deploy.bench.floor import floor_of, traffic_bytes
from mrsep_deploy.measuring.statistics import ratio_interval, verdict

STAGES = [
    {"stage": "encoder.<2048>", "branch": "2048", "stream": "2048", "start_ms": 0.0, "end_ms": 2.0},
    {"stage": "encoder.time", "branch": "time", "stream": "time", "start_ms": 0.5, "end_ms": 4.0},
]
SPREAD = {"median": 2.0, "p95": 3.0, "min": 1.0, "max": 4.0}
INTERVAL = {"median": 1.25, "low": 1.1, "high": 1.4}
ROWS = [
    Row("environment", "gpu", "ok", {"name": "Some <GPU>", "compute_capability": "9.0", "memory_gib": 140.0}),
    Row("ceilings", "device copy", "ok", {"bytes_per_second": 4e12}),
    Row("parity", "m: trt", "unavailable", {}, "TensorRT is not installed", "pip install it", 0.1),
    Row("parity", "m: PyTorch float64", "ok", {"snr_db": float("inf")}),
    Row("latency", "m: torch eager", "ok", {"host_ms": SPREAD, "times_faster_than_torch_eager": INTERVAL}),
    Row(
        "concurrency", "m: ort-cuda", "ok", {"verdict": "concurrency loses by 3 %", "times_faster": INTERVAL}
    ),
    Row("timeline", "m: ort-cuda", "ok", {"span_ms": 4.0, "sum_of_stages_ms": 5.5, "stages": STAGES}),
    Row("latency", "m: late", "skipped", reason="the time budget was used up before it"),
]


def ledger_in(folder: Path, seconds: float = 60.0, **options: Any) -> Ledger:
    return Ledger(Journal(folder / "journal.jsonl"), time.time() + seconds, **options)


def statuses(folder: Path) -> dict[str, str]:
    return {row.name: row.status for row in Journal(folder / "journal.jsonl").rows()}


# --- what is written


def test_json_is_strict_and_complete(tmp_path: Path) -> None:
    found = json.loads(to_json(Report(ROWS, 10, 61.2, ["a.whl"], "")), parse_constant=pytest.fail)
    assert found["format"] == "mrsep-deploy gpu acceptance"
    assert found["counts"] == {"ok": 6, "unavailable": 1, "skipped": 1}
    assert [row["name"] for row in found["rows"]] == [row.name for row in ROWS]
    assert found["rows"][3]["values"]["snr_db"] is None
    assert {path.name for path in write_report(Report(ROWS, 10, 1), tmp_path)} == {
        "gpu_acceptance.json",
        "gpu_acceptance.html",
    }


def test_the_page_stands_alone_and_says_what_matters() -> None:
    page = to_html(Report(ROWS, 10, 61.2, ended="the time budget was used up", remark="beside a training"))
    for text in (
        "concurrency loses by 3 %",
        "TensorRT is not installed pip install it",
        "4.00",
        "1.250 [1.100, 1.400]",
    ):
        assert text in page
    assert "Some &lt;GPU&gt;" in page
    assert "beside a training" in page
    assert "<svg" in page
    assert "Not complete: the time budget was used up" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_page_of_nothing() -> None:
    page = to_html(Report([], 10, 0))
    assert "nothing is known" in page


def test_timelines_have_a_lane_for_each_stream() -> None:
    picture = timeline_svg(STAGES)
    assert picture.count("<rect") == 2
    assert "encoder.&lt;2048&gt;" in picture
    assert timeline_svg([]).startswith("<svg")


# --- statistics


def test_spread_is_numpys() -> None:
    values = [3.0, 1.0, 2.0, 10.0]
    assert spread(values) == {"median": 2.5, "p95": np.percentile(values, 95), "min": 1.0, "max": 10.0}


def test_the_interval_of_a_constant_ratio_is_that_ratio() -> None:
    below = np.random.default_rng(1).uniform(1, 2, 20)
    found = ratio_interval((3 * below).tolist(), below.tolist())
    assert found == pytest.approx({"median": 3, "low": 3, "high": 3})


def test_the_interval_holds_what_numpy_resamples() -> None:
    random = np.random.default_rng(2)
    above, below = random.normal(2, 0.1, 40), random.normal(1, 0.05, 40)
    ratios = above / below
    medians = [np.median(random.choice(ratios, 40)) for _ in range(4000)]
    found = ratio_interval(above.tolist(), below.tolist())
    assert found["median"] == pytest.approx(np.median(ratios))
    assert [found["low"], found["high"]] == pytest.approx(
        np.percentile(medians, [2.5, 97.5]).tolist(), abs=0.02
    )


def test_verdicts_are_plain() -> None:
    noise = np.random.default_rng(3).uniform(0.99, 1.01, 30)
    one = np.ones(30)
    assert "wins" in str(verdict((1.2 * noise).tolist(), one.tolist())["verdict"])
    assert "loses" in str(verdict((0.8 * noise).tolist(), one.tolist())["verdict"])
    assert "no difference" in str(verdict(one.tolist(), one.tolist())["verdict"])


def test_the_floor_is_the_greater_of_arithmetic_and_memory() -> None:
    manifest = tiny_manifest().at_batch(2)
    moved = sum(
        manifest.tensor(name).elements * 4
        for stage in manifest.stages
        for name in (*stage.inputs, *stage.outputs)
    )
    moved += 4 * manifest.model.parameters
    assert traffic_bytes(manifest) == moved
    found = floor_of(2 * manifest.macs, moved, flops=1e3, bandwidth=1e12)
    assert found["arithmetic"] == found["floor"] == pytest.approx(2 * 2 * manifest.macs / 1e3)
    assert floor_of(2 * manifest.macs, moved, 1e30, 10.0)["floor"] == pytest.approx(moved / 10)


# --- rows


def test_no_row_takes_another_along(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("first line\nsecond line")

    def be_missing() -> dict[str, Any]:
        raise Unavailable("not here", "install it")

    ledger = ledger_in(tmp_path)
    assert ledger.measure("s", "fails", fail) is None
    assert ledger.measure("s", "missing", be_missing) is None
    assert ledger.measure("s", "works", lambda: {"x": 1}) == {"x": 1}
    found = {row.name: row for row in Journal(tmp_path / "journal.jsonl").rows()}
    assert found["fails"].reason == "RuntimeError: first line"
    assert (found["missing"].status, found["missing"].fix) == ("unavailable", "install it")
    assert found["works"].status == "ok"


def test_after_the_deadline_rows_are_skipped(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path, seconds=-1)
    assert ledger.measure("s", "late", lambda: pytest.fail("it was run")) is None
    assert statuses(tmp_path) == {"late": "skipped"}


@pytest.mark.skipif(os.name == "nt", reason="rows are interrupted by a POSIX timer")
def test_a_row_that_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    def linger() -> dict[str, Any]:
        time.sleep(30)
        return {}

    ledger = ledger_in(tmp_path)
    assert ledger.measure("s", "long", linger, limit=0.05) is None
    assert ledger.measure("s", "next", dict) == {}
    assert statuses(tmp_path) == {"long": "failed", "next": "ok"}


def test_an_interruption_that_somebody_wraps_is_still_one(tmp_path: Path) -> None:
    """As torch's exporter did on a GPU: what it said was wrong was the graph."""

    def wrap() -> dict[str, Any]:
        try:
            time.sleep(30)
        except Exception as error:
            raise RuntimeError("the graph cannot be decomposed") from error
        return {}

    ledger_in(tmp_path).measure("s", "wrapped", wrap, limit=0.05)
    (row,) = Journal(tmp_path / "journal.jsonl").rows()
    assert (
        row.reason == "it took longer than 0 s, and ended with RuntimeError: the graph cannot be decomposed"
    )


def test_a_process_that_dies_loses_one_row(tmp_path: Path) -> None:
    program = tmp_path / "worker.py"
    program.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from acceptance.rows import Journal, Ledger\n"
        f"ledger = Ledger(Journal(Path({str(tmp_path / 'journal.jsonl')!r})), time.time() + 60)\n"
        "for name, work in (('a', dict), ('dies', lambda: os._exit(9)), ('b', dict)):\n"
        "    ledger.measure('s', name, work)\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(shim.ROOT / "benchmarks")}
    journal = Journal(tmp_path / "journal.jsonl")
    assert rows.supervise([sys.executable, str(program)], variables, journal, time.time() + 60) is None
    assert statuses(tmp_path) == {"a": "ok", "dies": "failed", "b": "ok"}
    assert "code 9" in next(row.reason for row in journal.rows() if row.name == "dies")


class Scripted(Contender):
    """Gives stems, or raises in the run of that number."""

    def __init__(self, stems: np.ndarray[Any, Any], fails_in: int = -1) -> None:
        self.stems, self.fails_in, self.runs, self.closed = stems, fails_in, 0, False

    def run(self) -> Any:
        self.runs += 1
        if self.runs == self.fails_in:
            raise RuntimeError("the engine broke")
        return self.stems

    def close(self) -> None:
        self.closed = True


def _given(contender: Contender) -> Contender:
    return contender


@pytest.fixture
def lanes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> parity.Field:
    """A field over a tiny bundle, torch's GPU calls answered by nobody."""
    torch = pytest.importorskip("torch")
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda other: 1.0)
    monkeypatch.setattr(measure, "timed_event", lambda: event)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10, 20))
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    bundle = tiny_bundle(tmp_path)
    shape = bundle.manifest.tensor("stems").shape
    group = Group("tiny", (bundle,), None)
    exact = np.random.default_rng(0).standard_normal(shape)
    return parity.Field(group, np.zeros(bundle.manifest.tensor("mix").shape, np.float32), exact)


def test_an_engine_that_raises_does_not_stop_the_others(lanes: parity.Field, tmp_path: Path) -> None:
    stems = lanes.exact.astype(np.float32)
    made = {
        "torch eager": Scripted(stems),
        "broken at once": Scripted(stems, fails_in=1),
        "broken in a round": Scripted(stems, fails_in=8),
        "fine": Scripted(stems),
    }
    ledger = ledger_in(tmp_path)
    for name, contender in made.items():
        parity._open(ledger, lanes, name, functools.partial(_given, contender))
    measure._latency(ledger, lanes, {"bandwidth": 1e12, "fp32 TF32 off": 1e13})
    found = {(row.section, row.name): row for row in ledger.journal.rows()}
    assert found["parity", "tiny: broken at once"].status == "failed"
    assert found["parity", "tiny: fine"].values["snr_db"] > 120
    assert found["latency", "tiny: broken in a round"].reason == "RuntimeError: the engine broke"
    assert found["latency", "tiny: fine"].values["rounds"] == measure.MAX_ROUNDS
    assert "times_faster_than_torch_eager" in found["latency", "tiny: fine"].values
    assert [made[name].closed for name in made] == [False, True, True, False]


def test_our_contender_and_its_timeline_on_a_cpu(lanes: parity.Field) -> None:
    bundle = lanes.group.bundles[0]
    contender = OurContender(bundle, "ort", "sequential", "fp32", lanes.mix)
    assert contender.name == "ort fp32 split sequential"
    assert contender.run().shape == lanes.exact.shape
    contender.pipelined(5)
    contender.close()
    found = measure._timeline(lanes, bundle, "ort", "fp32", "concurrent")
    assert {stage["stage"] for stage in found["stages"]} == {stage.name for stage in bundle.manifest.stages}
    assert min(stage["start_ms"] for stage in found["stages"]) == 0
    assert timeline_svg(found["stages"]).count("<rect") == len(bundle.manifest.stages)


def test_torch_with_captured_parts_is_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces around the captures put together give what the model gives; the captures are stood in for."""
    torch = pytest.importorskip("torch")
    from mrsep_deploy.bench import torch_contenders
    from mrsep_deploy.export.load import load_model

    loaded = load_model(shim.ROOT / "tests" / "golden" / "htdemucs_n.th")
    model = loaded.model.eval()
    mix = torch.randn(1, 2, model.config.segment_samples)
    monkeypatch.setattr(torch_contenders, "_captured", lambda part, inputs: part)
    monkeypatch.setattr(torch_contenders, "GPU", "cpu")
    with torch.inference_mode():
        torch.testing.assert_close(
            torch_contenders.GraphedModel(loaded.staged("whole"), mix)(mix), model(mix), rtol=1e-4, atol=1e-4
        )


# --- the command


def test_without_a_gpu_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shim, "cuda_problem", lambda: "the NVIDIA driver finds no GPU")
    assert gpu_acceptance.main(["--out", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "gpu_acceptance: there is nothing to accept on this machine, the NVIDIA driver finds no GPU"
    ]
    assert not (tmp_path / "out").exists()


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert "no NVIDIA driver" in str(shim.cuda_problem())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out"),
        (["--out", "x", "--models", "best"], "'best' is none of untrained, trained"),
        (["--out", "x", "--wheels", "/no/such/folder"], "there is no folder"),
        (["--out", "x", "--minutes", "0"], "no time budget"),
        (["--out", "x", "--minutes", "ten"], "no number"),
        (["--out", "x", "--batches", "0"], "1 segment or more"),
        (["join", "--out", "x"], "--pieces"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_acceptance.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_project_is_importable_from_the_checkout_alone(tmp_path: Path) -> None:
    """Without site's path files there is no editable install; the worker's own imports find all of it."""
    mapped = shim.map_project(tmp_path / "mapped")
    program = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "import mrsep_deploy.engines.contract, mrsep_deploy.export, mrsep_deploy.separation.separator\n"
        "import mrsep_deploy.devices, acceptance.worker\n"
        "from importlib.util import find_spec\n"
        "assert find_spec('mrsep_deploy.export.graphs.trace') and find_spec('mrsep_deploy.engines.tensorrt.engine')\n"
        "print(mrsep_deploy.export.__file__)\n"
    )
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables = shim.environment(mapped, tmp_path / "site", tmp_path / "home", given)
    command = [sys.executable, "-S", "-c", program, sysconfig.get_paths()["purelib"]]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(mapped)


def test_a_folder_without_wheels(tmp_path: Path) -> None:
    with pytest.raises(shim.SetUpError, match="no wheel"):
        shim.install_wheels(tmp_path, tmp_path / "site")


# --- preparing


def test_only_lacking_wheels_are_wanted() -> None:
    listed = prepare.package_names(
        "Package  Version\n-------- ---\nnumpy 2.5.2\nCuda_Bindings==13.0\nplatformdirs"
    )
    wanted = prepare.wanted_wheels(listed)
    assert not {"numpy", "cuda-bindings", "platformdirs"} & set(wanted)
    assert "onnxruntime-gpu" in wanted


def test_pieces_hold_every_file_once() -> None:
    files = {"a": 50, "b": 30, "c": 20, "large": 90, "d": 10}
    pieces = prepare.group_pieces(files, 60)
    assert sorted(name for piece in pieces for name in piece) == sorted(files)
    assert all(sum(files[name] for name in piece) <= 60 for piece in pieces if piece != ["large"])


def test_what_is_cut_can_be_joined(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a.whl").write_bytes(bytes(range(256)) * 100)
    parts = prepare.cut(tmp_path, ("wheels", "bundles"), tmp_path / "pieces", 10_000)
    assert len(parts) > 2
    joined = prepare.join(tmp_path / "pieces", tmp_path / "joined")
    assert (joined / "wheels" / "a.whl").read_bytes() == (tmp_path / "wheels" / "a.whl").read_bytes()
    parts[1].unlink()
    with pytest.raises(shim.SetUpError, match="missing"):
        prepare.join(tmp_path / "pieces", tmp_path / "again")


def test_float32_is_asked_for_in_both_of_torch_s_ways() -> None:
    """The older switch alone leaves the newer one at ``none``; flags exist without a GPU too."""
    import torch

    from mrsep_deploy.bench.ceilings_cuda import tf32

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    for allowed, name in ((False, "ieee"), (True, "tf32")):
        with tf32(allowed):
            assert (cudnn.allow_tf32, matmul.allow_tf32) == (allowed, allowed)
            if hasattr(cudnn, "conv"):
                assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == (name, name)
    assert (cudnn.allow_tf32, matmul.allow_tf32) == before
