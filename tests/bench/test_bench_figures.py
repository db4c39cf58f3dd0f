"""What bench makes of times, counters and stems: against known values and planted systems."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundles import tiny_manifest

from mrsep_deploy.bench import ceilings
from mrsep_deploy.bench.floor import floor_of, stage_bytes, stage_macs, traffic_bytes
from mrsep_deploy.bench.noise import Snapshot, noise_between, snapshot
from mrsep_deploy.bench.parity import Reference, allowed, compare
from mrsep_deploy.bench.profile import read_ort_profile
from mrsep_deploy.bench.standalone import energy
from mrsep_deploy.bench.standalone.energy import cpu_meter, gpu_memory_used, gpu_meter
from mrsep_deploy.bench.workloads import ITEMS, make_workloads
from mrsep_deploy.measuring.limits import Limit, limit_for
from mrsep_deploy.measuring.rounds import Turn, clocked, race
from mrsep_deploy.measuring.statistics import drift, drifted, ratio_interval, rounds_for, spread, tail

# --- statistics


def test_spread_and_tails() -> None:
    values = [float(value) for value in range(1, 101)]
    found = spread(values)
    assert (found["median"], found["min"], found["max"]) == (50.5, 1.0, 100.0)
    assert (found["p25"], found["p75"]) == (25.75, 75.25)
    assert (rounds_for(95), rounds_for(99)) == (20, 100)
    assert tail(values, 95) == pytest.approx(95.05)
    assert tail(values, 99) == pytest.approx(99.01)
    assert tail(values[:99], 99) is None
    assert tail(values[:19], 95) is None
    assert tail(values[:20], 95) is not None


def test_the_interval_of_three_rounds() -> None:
    """Of three ratios the resampled median is the least with 7/27, the greatest with 7/27: both are in the interval."""
    found = ratio_interval([2.0, 6.0, 12.0], [1.0, 2.0, 3.0])
    assert found == {"median": 3.0, "low": 2.0, "high": 4.0}


def test_the_interval_of_nine_rounds() -> None:
    """Exact: the 5th smallest of nine draws is at most the k-th of nine ratios with P(Binomial(9, k/9) >= 5)."""
    ratios = [float(value) for value in range(1, 10)]

    def below(k: int) -> float:
        return sum(math.comb(9, n) * (k / 9) ** n * (1 - k / 9) ** (9 - n) for n in range(5, 10))

    low = next(k for k in range(1, 10) if below(k) >= 0.025)
    high = next(k for k in range(1, 10) if below(k) >= 0.975)
    found = ratio_interval(ratios, [1.0] * 9)
    assert (found["median"], found["low"], found["high"]) == (5.0, low, high)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        moment = random.uniform(1, 2, 25)  # what a slow moment does to both
        above = 2 * moment * random.lognormal(0, 0.05, 25)
        below = moment * random.lognormal(0, 0.05, 25)
        found = ratio_interval(above.tolist(), below.tolist())
        held += found["low"] <= 2 <= found["high"]
    assert 180 <= held <= 199


def test_drift() -> None:
    assert drift([1.0, 1.0, 1.0]) is None
    assert drift([1.0, 1.0, 9.0, 1.5, 1.5]) == pytest.approx(0.5)
    assert drifted([1.0, 1.01, 1.0, 1.2, 1.21, 1.2])
    assert not drifted([1.0, 1.2, 1.1, 1.15, 1.05, 1.2])
    assert not drifted([1.0, 2.0, 1.0, 2.0])
    random = np.random.default_rng(6)
    assert sum(drifted(random.normal(1, 0.1, 20).tolist()) for _ in range(200)) <= 10


# --- turns


def test_rounds_are_complete_and_shuffled() -> None:
    order: list[str] = []

    def turn(name: str) -> Turn:
        def take(number: int) -> float:
            order.append(name)
            return float(number)

        return take

    found = race({name: turn(name) for name in "abc"}, 20, warm_up=2, seed=3)
    assert found.times == {name: [float(n) for n in range(20)] for name in "abc"}
    rounds = ["".join(order[start : start + 3]) for start in range(6, len(order), 3)]
    assert len(rounds) == 20
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 3
    before, order = order, []
    race({name: turn(name) for name in "abc"}, 20, warm_up=2, seed=3)
    assert order == before


def failing(at: int, error: BaseException) -> Callable[[int], float]:
    runs: list[int] = []

    def turn(number: int) -> float:
        runs.append(number)
        if len(runs) == at:
            raise error
        return 1.0

    return turn


def test_one_that_fails_leaves_the_race() -> None:
    error = ValueError("broken")
    found = race({"a": lambda _n: 1.0, "b": failing(3, error), "c": failing(1, error)}, 4)
    assert found.times == {"a": [1.0] * 4}
    assert found.failed == {"b": error, "c": error}
    assert not found.interrupted


def test_interruption_keeps_complete_rounds() -> None:
    found = race({"a": lambda _n: 1.0, "b": failing(4, KeyboardInterrupt())}, 9)
    assert found.interrupted
    assert found.times == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert found.rounds == 2


def test_errors_that_go_through() -> None:
    with pytest.raises(TimeoutError):
        race({"a": failing(2, TimeoutError())}, 3, through=(TimeoutError,))


def test_clocked() -> None:
    seen: list[int] = []
    assert clocked(seen.append)(7) >= 0
    assert seen == [7]
    assert race({}, 3).rounds == 0


# --- noise

QUIET = Snapshot(0.0, 10.0, 0.1, 100.0, 5.0, 1000.0, 1.0, 3, 1.0)


def after(**changes: float) -> Snapshot:
    """Ten seconds later on two cores; 15 CPU seconds were busy, all of them ours."""
    usual = {"busy_seconds": 115.0, "steal_seconds": 5.0, "total_seconds": 1020.0, "quota_seconds": 1.0}
    return QUIET._replace(**{"at": 10.0, "own_seconds": 25.0, **usual, **changes})  # type: ignore[arg-type]


def test_a_quiet_machine() -> None:
    found = noise_between(QUIET, after(), {"ort": [1.0, 1.01, 1.0, 1.0, 1.0, 1.01]})
    assert found.quiet
    assert found.others_cores == 0
    assert json.loads(json.dumps(found.plain()))["quiet"]


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"busy_seconds": 120.0}, "other processes kept 0.50 CPU cores busy"),
        ({"steal_seconds": 6.0}, "the hypervisor gave 5.0% of the CPU time"),
        ({"quota_seconds": 3.5}, "the container's CPU quota stopped it for 2.50 s"),
        ({"throttles": 5}, "throttled for heat 2 times"),
        ({"clock": 0.6}, "the clock was at 60% of its greatest value"),
    ],
)
def test_noise_is_said(changes: dict[str, float], remark: str) -> None:
    found = noise_between(QUIET, after(**changes))
    assert not found.quiet
    assert len(found.remarks) == 1
    assert remark in found.remarks[0]


def test_load_before_and_drift_are_said() -> None:
    before = QUIET._replace(load=1.5)
    found = noise_between(before, after(), {"ort": [1.0, 1.0, 1.0, 1.3, 1.3, 1.3], "torch": [1.0] * 6})
    assert found.remarks == (
        "the load average was 1.50 before the start",
        "ort was 30% slower in the later half of the rounds",
    )
    assert found.drift == pytest.approx({"ort": 0.3, "torch": 0})


def test_a_planted_system_is_read(tmp_path: Path) -> None:
    files = {
        "proc/stat": "cpu  100 10 50 800 20 5 5 10 0 0\ncpu0 1 1 1\n",
        "proc/loadavg": "0.25 0.1 0.1 1/100 1\n",
        "sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_throttled 2\nthrottled_usec 2500000\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
        "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3000000\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = snapshot(1.5, tmp_path)
    assert (found.own_seconds, found.load, found.quota_seconds) == (1.5, 0.25, 2.5)
    assert (found.throttles, found.clock) == (7, 0.5)
    assert found.busy_seconds is not None
    assert found.total_seconds is not None
    assert found.steal_seconds is not None
    assert found.busy_seconds / found.total_seconds == pytest.approx(170 / 1000)
    assert found.steal_seconds / found.total_seconds == pytest.approx(10 / 1000)


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    one = snapshot(1.0, tmp_path)
    found = noise_between(one, snapshot(2.0, tmp_path))
    assert found.quiet
    assert (found.others_cores, found.steal_share, found.throttles, found.clock_share) == (None,) * 4


# --- energy


def zone(folder: Path, number: int, name: str, microjoules: int) -> Path:
    place = folder / f"intel-rapl:{number}"
    place.mkdir(parents=True)
    (place / "name").write_text(f"{name}\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    (place / "max_energy_range_uj").write_text("10000000\n")
    return place


def test_rapl_adds_packages_and_wraps(tmp_path: Path) -> None:
    one, two = zone(tmp_path, 0, "package-0", 9_000_000), zone(tmp_path, 1, "package-1", 1_000_000)
    zone(tmp_path, 2, "dram", 5)
    meter = cpu_meter(tmp_path)
    before = meter.read()
    (one / "energy_uj").write_text("500000")  # beyond 10 J it begins again
    (two / "energy_uj").write_text("3000000")
    assert meter.since(before) == pytest.approx(1.5 + 2)
    assert meter.source == "RAPL, 2 packages"


def test_no_energy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no " in cpu_meter(tmp_path / "nowhere").reason
    assert "lists no processor package" in cpu_meter(tmp_path).reason
    zone(tmp_path, 0, "package-0", 1)

    def refuse(_zone: Path) -> energy.Counter:
        def read() -> float:
            raise PermissionError

        return energy.Counter(read)

    monkeypatch.setattr(energy, "_rapl", refuse)
    meter = cpu_meter(tmp_path)
    assert "only root" in meter.reason
    assert meter.since(meter.read()) is None


def test_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([1000, 2000, 4500])
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda _handle: next(readings),
        nvmlDeviceGetMemoryInfo=lambda _handle: SimpleNamespace(used=7),
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    meter = gpu_meter()
    assert meter.since(meter.read()) == 2.5
    assert gpu_memory_used() == 7
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_meter().reason == 'nvidia-ml-py is not installed: pip install "mrsep-deploy[bench]"'
    assert gpu_memory_used() is None


# --- floors


def test_floors() -> None:
    assert floor_of(1e9, 1e9, 1e12, 1e10) == {"arithmetic": 0.002, "memory": 0.1, "floor": 0.1}
    manifest = tiny_manifest().at_batch(2)
    weights = 4 * (manifest.model.parameters - sum(stage.parameters for stage in manifest.stages))
    assert sum(stage_bytes(manifest, stage) for stage in manifest.stages) + weights == traffic_bytes(manifest)


def test_macs_are_those_of_the_graphs(exports: Any) -> None:
    bundle = exports("htdemucs")
    macs, counted = stage_macs(bundle)
    assert counted == "graphs"
    assert set(macs) == {stage.name for stage in bundle.manifest.graph_stages}
    assert sum(macs.values()) == pytest.approx(bundle.manifest.macs, rel=0.05)  # folded norms


def test_the_machine_is_measured() -> None:
    assert ceilings.matrix_rate(64, 2) > 0
    assert ceilings.copy_rate(2, 2**16, 2) > 0
    found = ceilings.cpu_ceilings(1)
    assert found["flop_per_second"] > 1e8
    assert found["bytes_per_second"] > 1e7


# --- right or wrong

SOURCES = ("drums", "bass")


def stems(noise: float = 0.0) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(1)
    made = random.standard_normal((1, 2, 2, 1000))
    return made + noise * random.standard_normal(made.shape)


def reference(**changes: Any) -> Reference:
    given = {"title": "exact", "stems": stems(), "exact": True, "yardstick": {}, "mix": 2.0}
    return Reference(**{**given, **changes})


def test_parity_by_stem() -> None:
    good = compare(stems(1e-6), reference(), SOURCES, limit_for("float32"))
    assert good.passes
    assert all(snr == pytest.approx(120, abs=1) for snr in good.snr.values())
    wrong = stems(1e-6)
    wrong[:, 1] *= 1.001
    found = compare(wrong, reference(), SOURCES, limit_for("float32"))
    assert not found.passes
    below = "its error 63.0 dB below the mix, limit 125"
    assert found.reason == f"wrong stems: 60.0 dB, limit 100 (bass, against exact, {below})"
    assert compare(wrong, reference(), SOURCES, limit_for("bfloat16")).passes
    assert compare(wrong[..., :-1], reference(), SOURCES, limit_for("float32")).reason.startswith(
        "wrong stems: shape "
    )


def test_a_quiet_stem_passes_by_the_mix() -> None:
    quiet = stems()
    quiet[:, 1] *= 1e-6
    wrong = quiet.copy()
    wrong[:, 1] *= 1.1
    found = compare(wrong, reference(stems=quiet), SOURCES, limit_for("float32"))
    assert found.passes
    assert found.worst == "drums"
    assert (found.limit["drums"], found.limit["bass"]) == (100.0, None)
    assert found.snr["bass"] == pytest.approx(20)
    plain = json.loads(json.dumps(found.plain(), allow_nan=False))
    assert plain["exact"] == ["drums"]
    assert plain["snr_db"]["drums"] is None
    assert plain["passes_by"] == {"drums": "SNR", "bass": "mix"}
    assert plain["below_mix_db"]["bass"] == pytest.approx(143, abs=1)
    # of a quieter mix, or a louder error, it does not
    assert not compare(wrong, reference(stems=quiet, mix=0.02), SOURCES, limit_for("float32")).passes
    wrong[:, 1] = 20 * quiet[:, 1]
    assert not compare(wrong, reference(stems=quiet), SOURCES, limit_for("float32")).passes
    wrong[0, 1, 0, 0] = np.inf
    assert not compare(wrong, reference(stems=quiet), SOURCES, limit_for("float32")).passes


def test_what_pytorch_itself_loses_is_allowed() -> None:
    limit = Limit(100.0, "")
    exact, single = reference(), reference(exact=False)
    assert allowed(limit, exact, None) == 100
    assert allowed(limit, exact, 90.0) == pytest.approx(90 - 20 * math.log10(3))
    assert allowed(limit, single, 90.0) == pytest.approx(90 - 20 * math.log10(4))
    assert allowed(limit, single, 130.0) == 100


# --- what is run


@pytest.mark.parametrize("batch", [1, 3])
def test_workloads(tmp_path: Path, batch: int) -> None:
    manifest = tiny_manifest().at_batch(batch)
    model = manifest.model
    segments, song = make_workloads(manifest, None, (0.05,), tmp_path)
    found = np.load(segments.path)
    assert found.shape == (segments.items, batch, model.audio_channels, model.segment_samples)
    assert 2 <= segments.items <= ITEMS
    assert found.dtype == np.float32
    assert found.std() == pytest.approx(1, abs=0.5)
    if batch > 1:  # neighbours: a batch begins with the second segment of the one before
        np.testing.assert_array_equal(found[0, 1], found[1, 0])
    assert not segments.song
    assert song.song
    assert np.load(song.path).shape == (1, model.audio_channels, 400)
    assert song.audio_seconds == pytest.approx(0.05)


# --- profiles


def test_a_profile_of_onnx_runtime() -> None:
    def node(name: str, kind: str, at: int, took: int) -> dict[str, Any]:
        arguments = {"op_name": kind, "provider": "CPUExecutionProvider"}
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": at, "dur": took, "args": arguments}

    def span(name: str, at: int, took: int) -> dict[str, Any]:
        return {"cat": "Session", "name": name, "ts": at, "dur": took, "args": {}}

    events = [
        span("session_initialization", 0, 50),
        span("model_run", 100, 100),
        node("conv", "Conv", 110, 60),
        {**node("conv", "Conv", 171, 1), "name": "conv_fence_after"},
        span("model_run", 300, 100),
        node("conv", "Conv", 310, 40),
        node("gelu", "Gelu", 360, 20),
    ]
    runs = read_ort_profile(json.dumps(events))
    assert [[(n.name, n.kind, round(n.seconds * 1e6)) for n in run] for run in runs] == [
        [("conv", "Conv", 60)],
        [("conv", "Conv", 40), ("gelu", "Gelu", 20)],
    ]
