"""``build`` for a CPU measures which run plan is fastest, and ``run`` uses it from then on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import wide_terminal
from bundles import CHANNELS, SAMPLE_RATE, SAMPLES, tiny_manifest
from wide_terminal import run

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices.interface import Stream
from mrsep_deploy.engines.cache import EngineCache
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import Engine, EngineOptions
from mrsep_deploy.engines.side_car import Entry
from mrsep_deploy.errors import EngineError, OutputError
from mrsep_deploy.measuring.rounds import Race, Turn
from mrsep_deploy.runtime import plan
from mrsep_deploy.runtime.plan import RunPlan, keep_plan, prune_plans, run_plan, stored_plans
from mrsep_deploy.separation import tuning
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.separation.tuning import Trial, best, candidates, tune
from mrsep_deploy.testing import FakeEngine

TWO = EngineOptions(threads=2)


bundle = wide_terminal.bundle


def ort(threads: int = 2) -> Engine:
    return choose("ort", EngineOptions(threads=threads)).engine


# --- what is kept -------------------------------------------------------------------------------------------


def test_what_was_kept_is_found(bundle: Bundle) -> None:
    keep_plan(bundle, ort(), RunPlan("concurrent", 2))
    assert run_plan(bundle, ort(), None, 0) == RunPlan("concurrent", 2, measured=True)


def test_nothing_kept_is_one_segment_after_the_other(bundle: Bundle) -> None:
    assert run_plan(bundle, ort(), None, 0) == RunPlan("sequential", 1)


def test_what_was_asked_for_outweighs_what_was_measured(bundle: Bundle) -> None:
    keep_plan(bundle, ort(), RunPlan("concurrent", 2))
    assert run_plan(bundle, ort(), "sequential", 0) == RunPlan("sequential", 1)
    assert run_plan(bundle, ort(), None, 1) == RunPlan("sequential", 1)


def test_nodes_that_build_keeps_in_float32_stay_so_in_any_mode(bundle: Bundle) -> None:
    kept = {"branch.16": ("*",)}
    keep_plan(bundle, ort(), RunPlan("concurrent", 2, keep=kept, snr=41.5))
    assert run_plan(bundle, ort(), None, 0) == RunPlan("concurrent", 2, keep=kept, snr=41.5, measured=True)
    assert run_plan(bundle, ort(), "sequential", 0) == RunPlan("sequential", 1, keep=kept, snr=41.5)
    (stored,) = stored_plans()
    assert stored.details["stage"].endswith("; branch.16 in float32")


def test_another_number_of_threads_was_not_measured(bundle: Bundle) -> None:
    keep_plan(bundle, ort(2), RunPlan("sequential", 2))
    assert not run_plan(bundle, ort(1), None, 0).measured


def test_another_processor_was_not_measured(bundle: Bundle) -> None:
    keep_plan(bundle, ort(), RunPlan("sequential", 2))
    with mock.patch.object(plan, "cpu_model", return_value="another one"):
        assert not run_plan(bundle, ort(), None, 0).measured


def file_of(stored: Entry) -> Path:
    return plan.plans_dir() / f"{stored.name}.json"


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("format", "mrsep-deploy engine", "run plan.format is 'mrsep-deploy engine'"),
        ("format_version", 2, "run plan.format_version is 2"),
        ("mode", "sideways", "run plan.mode is 'sideways', expected one of sequential"),
        ("lanes", 0, "run plan.lanes is 0, expected a whole number from 1 to 1024"),
        ("precision", "fp16", "run plan.precision is 'fp16', expected the key's, fp32"),
        ("more", 1, "run plan has an unknown field 'more'"),
        ("key", {}, "run plan.key has no field"),
    ],
)
def test_a_plan_is_read_strictly(bundle: Bundle, field: str, value: object, problem: str) -> None:
    """One that another version wrote is passed over; the list says what is wrong, and pruning deletes it."""
    keep_plan(bundle, ort(), RunPlan("sequential", 2))
    (stored,) = stored_plans()
    assert stored.problem == ""
    assert stored.details == {"model": "tiny", "stage": "run plan: 2 segments side by side"}
    assert run_plan(bundle, ort(), None, 0) == RunPlan("sequential", 2, measured=True)
    file_of(stored).write_text(json.dumps({**json.loads(file_of(stored).read_text()), field: value}))
    assert run_plan(bundle, ort(), None, 0) == RunPlan()
    (stored,) = stored_plans()
    assert stored.problem.startswith(problem)
    assert problem in run("cache", "list").output
    assert run("cache", "prune").output.startswith("deleted 0 engines, 1 run plan, ")
    assert stored_plans() == []


@pytest.mark.parametrize("data", [b"", b"\xff", b"{", b"[]", b"x" * 2**17])
def test_a_damaged_plan_is_passed_over(bundle: Bundle, data: bytes) -> None:
    keep_plan(bundle, ort(), RunPlan("sequential", 2))
    (stored,) = stored_plans()
    file_of(stored).write_bytes(data)
    assert run_plan(bundle, ort(), None, 0) == RunPlan()
    assert stored_plans()[0].problem


def test_a_plan_of_another_key_is_not_taken(bundle: Bundle) -> None:
    keep_plan(bundle, ort(), RunPlan("sequential", 2))
    (stored,) = stored_plans()
    file_of(stored).rename(file_of(stored).with_stem("0" * 32))
    (stored,) = stored_plans()
    assert "belongs to the key" in stored.problem


def test_pruning_goes_by_the_last_use(bundle: Bundle) -> None:
    for threads in (1, 2):
        keep_plan(bundle, ort(threads), RunPlan(lanes=threads))
    for stored in stored_plans():
        os.utime(file_of(stored), (0, 0))
    assert run_plan(bundle, ort(1), None, 0).measured
    assert prune_plans(timedelta(days=30), everything=False)[0] == 1
    (left,) = stored_plans()
    assert left.key is not None
    assert left.key.options == {"threads": 1}


def test_a_plan_is_no_engine(bundle: Bundle) -> None:
    keep_plan(bundle, ort(), RunPlan("sequential", 2))
    assert EngineCache().entries() == []


def test_a_plan_that_cannot_be_kept(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be written"):
        keep_plan(bundle, ort(), RunPlan("sequential", 2))


# --- measuring ----------------------------------------------------------------------------------------------


def test_what_is_tried() -> None:
    assert candidates(tiny_manifest(), 1) == [RunPlan()]
    assert candidates(tiny_manifest(), 2) == [RunPlan(), RunPlan("concurrent"), RunPlan(lanes=2)]
    assert [each.lanes for each in candidates(tiny_manifest(), 12)] == [1, 1, 2, 4, 8, 12]


def tuned(bundle: Bundle, engine: type[FakeEngine], times_faster: float = 1.0) -> list[Trial]:
    """The trials, by a clock on which every challenger is so many times faster than the champion."""

    def made(options: EngineOptions) -> Engine:
        return engine(options=options)

    def clock(contenders: Mapping[str, Turn], rounds: int) -> Race:
        for turn in contenders.values():
            turn(0)
        wobble = [1 + 0.01 * number for number in range(rounds)]
        seconds = {name: 8 / times_faster if name == "challenger" else 8.0 for name in contenders}
        return Race({name: [w * seconds[name] for w in wobble] for name in contenders})

    with (
        mock.patch.object(tuning, "engine_class", return_value=made),
        mock.patch.object(tuning, "race", clock),
    ):
        return tune(bundle, "fake", TWO, lambda _what, _done, _steps: None)


def test_the_last_to_win_is_kept(bundle: Bundle) -> None:
    trials = tuned(bundle, FakeEngine, times_faster=2)
    assert [trial.plan for trial in trials] == candidates(bundle.manifest, 2)
    assert [trial.won for trial in trials] == [True, True, True]
    assert best(trials) == RunPlan(lanes=2)
    assert trials[0].times_faster is None
    assert trials[-1].times_faster == pytest.approx({"median": 2, "low": 2, "high": 2})
    # 8 s for the champion's two segments; both sides of the last challenge run two a lane.
    assert [trial.seconds for trial in trials] == pytest.approx([4.08, 2.04, 1.02])


@pytest.mark.parametrize("times_faster", [0.5, 1.0, 1.01])
def test_what_is_no_faster_does_not_win(bundle: Bundle, times_faster: float) -> None:
    """One per cent is not worth a second segment's memory."""
    trials = tuned(bundle, FakeEngine, times_faster)
    assert [trial.won for trial in trials] == [True, False, False]
    assert best(trials) == RunPlan()


def test_a_plan_that_cannot_run_is_passed_over(bundle: Bundle) -> None:
    class Narrow(FakeEngine):
        def prepare_lanes(self, bundle: Bundle, stage: Stage, threads: int, streams: Sequence[Stream]):  # type: ignore[no-untyped-def]
            if len(streams) > 1:
                raise EngineError("there is no memory for two")
            return super().prepare_lanes(bundle, stage, threads, streams)

    trials = tuned(bundle, Narrow, times_faster=2)
    assert trials[-1].seconds is None
    assert "no memory for two" in trials[-1].reason
    assert best(trials) == RunPlan("concurrent")


def test_a_bundle_that_does_not_run_is_an_error(bundle: Bundle) -> None:
    class Broken(FakeEngine):
        def prepare(self, bundle: Bundle, stage: Stage, threads: int, stream: Stream):  # type: ignore[no-untyped-def]
            raise EngineError("nothing works")

    with pytest.raises(EngineError, match="nothing works"):
        tuned(bundle, Broken)


# --- the commands -------------------------------------------------------------------------------------------


def test_build_keeps_what_run_then_does(bundle: Bundle, tmp_path: Path) -> None:
    result = run("build", "tiny", "--engine", "ort", "--threads", "2")
    assert result.exit_code == 0, result.output
    assert "run now does it so" in result.output
    chosen = run_plan(bundle, ort(), None, 0)
    assert chosen.measured
    listed = run("cache", "list")
    assert f"run plan: {chosen.title}" in listed.output
    wav = tmp_path / "song.wav"
    soundfile.write(wav, np.zeros((3 * SAMPLES, CHANNELS)), SAMPLE_RATE)
    done = run(
        "run", "-n", "tiny", "--engine", "ort", "--threads", "2", "-o", str(tmp_path / "out"), str(wav)
    )
    assert done.exit_code == 0, done.output
    assert f"{chosen.title}, as measured here" in done.output


def test_build_as_json() -> None:
    result = run("build", "tiny", "--engine", "ort", "--threads", "1", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    (only,) = json.loads(result.output)
    assert (only["mode"], only["lanes"], only["won"], only["times_faster"]) == ("sequential", 1, True, None)


def test_lanes_on_the_command_line(tmp_path: Path) -> None:
    wav = tmp_path / "song.wav"
    soundfile.write(wav, np.zeros((3 * SAMPLES, CHANNELS)), SAMPLE_RATE)
    arguments = ("run", "-n", "tiny", "--engine", "ort", "-o", str(tmp_path / "out"), str(wav))
    done = run(*arguments, "--threads", "2", "--lanes", "2")
    assert done.exit_code == 0, done.output
    refused = run(*arguments, "--threads", "2", "--lanes", "3")
    assert refused.exit_code == 2
    assert "3 segments side by side were asked for, there are 2 threads" in refused.output


@pytest.mark.parametrize("option", [("--target", "sm_86"), ("--workspace", "9"), ("-o", "engines")])
def test_options_of_tensorrt_are_refused(option: tuple[str, str]) -> None:
    result = run("build", "tiny", "--engine", "ort", *option)
    assert result.exit_code == 2
    assert "is for TensorRT" in result.output


def test_threads_are_for_the_cpu() -> None:
    result = run("build", "tiny", "--engine", "torch", "--threads", "2")
    assert result.exit_code == 2
    assert "--threads is for ort and openvino" in result.output


def test_a_separator_takes_what_was_measured(bundle: Bundle) -> None:
    keep_plan(bundle, ort(), RunPlan("sequential", 2))
    with Separator(bundle, engine="ort", threads=2) as separator:
        assert separator.run_plan == RunPlan("sequential", 2, measured=True)
        assert separator.scheduler.capacity == 4


def test_a_profile_is_of_one_segment_at_a_time_whatever_was_measured(bundle: Bundle) -> None:
    keep_plan(bundle, ort(), RunPlan("sequential", 2))
    result = run("bench", "tiny", "--engine", "ort", "--profile", "--rounds", "1", "--threads", "2")
    assert result.exit_code == 0, result.output
    assert "tiny on ort" in result.output
