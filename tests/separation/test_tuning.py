"""``build`` for a CPU measures in which manner segments run fastest, and ``run`` does it so from then on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
from bundles import CHANNELS, SAMPLE_RATE, SAMPLES, tiny_bundle, tiny_manifest
from click.testing import CliRunner, Result

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.bundle.registry import register
from mrsep_deploy.commands import main
from mrsep_deploy.devices.interface import Stream
from mrsep_deploy.engines.cache import EngineCache
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import Engine, EngineOptions
from mrsep_deploy.errors import EngineError
from mrsep_deploy.measuring.rounds import Race, Turn
from mrsep_deploy.runtime import plan
from mrsep_deploy.runtime.plan import Manner, keep_manner, manner_of
from mrsep_deploy.separation import tuning
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.separation.tuning import Trial, best, manners, tune
from mrsep_deploy.testing import FakeEngine

TWO = EngineOptions(threads=2)


@pytest.fixture(autouse=True)
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A registered bundle called tiny, in a home of its own."""
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    made = tiny_bundle(tmp_path)
    register(made)
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main.main, arguments, prog_name=main.PROGRAM)


def ort(threads: int = 2) -> Engine:
    return choose("ort", EngineOptions(threads=threads)).engine


# --- what is kept -------------------------------------------------------------------------------------------


def test_what_was_kept_is_found(bundle: Bundle) -> None:
    keep_manner(bundle, ort(), Manner("concurrent", 2))
    assert manner_of(bundle, ort(), None, 0) == Manner("concurrent", 2, measured=True)


def test_nothing_kept_is_one_segment_after_the_other(bundle: Bundle) -> None:
    assert manner_of(bundle, ort(), None, 0) == Manner("sequential", 1)


def test_what_was_asked_for_outweighs_what_was_measured(bundle: Bundle) -> None:
    keep_manner(bundle, ort(), Manner("concurrent", 2))
    assert manner_of(bundle, ort(), "sequential", 0) == Manner("sequential", 1)
    assert manner_of(bundle, ort(), None, 1) == Manner("sequential", 1)


def test_another_number_of_threads_was_not_measured(bundle: Bundle) -> None:
    keep_manner(bundle, ort(2), Manner("sequential", 2))
    assert not manner_of(bundle, ort(1), None, 0).measured


def test_another_processor_was_not_measured(bundle: Bundle) -> None:
    keep_manner(bundle, ort(), Manner("sequential", 2))
    with mock.patch.object(plan, "cpu_model", return_value="another one"):
        assert not manner_of(bundle, ort(), None, 0).measured


def test_what_another_version_wrote_is_passed_over(bundle: Bundle) -> None:
    keep_manner(bundle, ort(), Manner("sequential", 2))
    entry = EngineCache().entries()[0]
    engine, side_car = (EngineCache().folder / f"{entry.name}.{kind}" for kind in ("engine", "json"))
    data = b'{"mode": "sideways", "lanes": 2}'
    engine.write_bytes(data)
    record = json.loads(side_car.read_text())
    side_car.write_text(
        json.dumps({**record, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    )
    assert manner_of(bundle, ort(), None, 0) == Manner()


# --- measuring ----------------------------------------------------------------------------------------------


def test_what_is_tried() -> None:
    assert manners(tiny_manifest(), 1) == [Manner()]
    assert manners(tiny_manifest(), 2) == [Manner(), Manner("concurrent"), Manner(lanes=2)]
    assert [each.lanes for each in manners(tiny_manifest(), 12)] == [1, 1, 2, 4, 8, 12]


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
    assert [trial.manner for trial in trials] == manners(bundle.manifest, 2)
    assert [trial.won for trial in trials] == [True, True, True]
    assert best(trials) == Manner(lanes=2)
    assert trials[0].times_faster is None
    assert trials[-1].times_faster == pytest.approx({"median": 2, "low": 2, "high": 2})
    # 8 s for the champion's two segments; both sides of the last challenge run two a lane.
    assert [trial.seconds for trial in trials] == pytest.approx([4.08, 2.04, 1.02])


@pytest.mark.parametrize("times_faster", [0.5, 1.0, 1.01])
def test_what_is_no_faster_does_not_win(bundle: Bundle, times_faster: float) -> None:
    """One per cent is not worth a second segment's memory."""
    trials = tuned(bundle, FakeEngine, times_faster)
    assert [trial.won for trial in trials] == [True, False, False]
    assert best(trials) == Manner()


def test_a_manner_that_cannot_run_is_passed_over(bundle: Bundle) -> None:
    class Narrow(FakeEngine):
        def prepare_lanes(self, bundle: Bundle, stage: Stage, threads: int, streams: Sequence[Stream]):  # type: ignore[no-untyped-def]
            if len(streams) > 1:
                raise EngineError("there is no memory for two")
            return super().prepare_lanes(bundle, stage, threads, streams)

    trials = tuned(bundle, Narrow, times_faster=2)
    assert trials[-1].seconds is None
    assert "no memory for two" in trials[-1].reason
    assert best(trials) == Manner("concurrent")


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
    chosen = manner_of(bundle, ort(), None, 0)
    assert chosen.measured
    listed = run("cache", "list")
    assert f"manner: {chosen.title}" in listed.output
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
    keep_manner(bundle, ort(), Manner("sequential", 2))
    with Separator(bundle, engine="ort", threads=2) as separator:
        assert separator.manner == Manner("sequential", 2, measured=True)
        assert separator.scheduler.capacity == 4


def test_a_profile_is_of_one_segment_at_a_time_whatever_was_measured(bundle: Bundle) -> None:
    keep_manner(bundle, ort(), Manner("sequential", 2))
    result = run("bench", "tiny", "--engine", "ort", "--profile", "--rounds", "1", "--threads", "2")
    assert result.exit_code == 0, result.output
    assert "tiny on ort" in result.output
