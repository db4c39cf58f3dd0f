"""The first run with TensorRT: all is built, with a word for each engine, before anything is loaded."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bundles import SAMPLE_RATE, SOURCES
from click.testing import CliRunner
from fake_tensorrt import FakeTensorRt
from fake_tensorrt_engine import Make, bundle, driver, library, make, stage, with_transforms

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.commands.main import main
from mrsep_deploy.devices.interface import Runner
from mrsep_deploy.engines import AUTO
from mrsep_deploy.engines.choice import Choice
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.errors import DeviceLostError, EngineError, EngineUnavailableError
from mrsep_deploy.runtime.scheduler import Scheduler
from mrsep_deploy.separation import separator as separator_module
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.testing import FakeEngine

__all__ = ["bundle", "driver", "library", "make", "stage"]

Told = list[tuple[str, int, int]]


def in_order(library: FakeTensorRt) -> list[str]:
    return [call[0] for call in library.calls if call[0] in ("build", "load")]


def test_everything_is_built_before_anything_is_loaded(
    make: Make, library: FakeTensorRt, bundle: Bundle
) -> None:
    """Kernels are timed on a GPU that does nothing else; who waits for minutes is told for what."""
    complete, told = with_transforms(bundle), Told()
    stages = [each.name for each in complete.manifest.stages]
    report = lambda what, done, total: told.append((what, done, total))  # noqa: E731
    with Separator(complete, engine=make(), report=report):
        assert in_order(library) == ["build"] * len(stages) + ["load"] * len(stages)
    what = "building the engine of stage {} with TensorRT 10.13.2.6"
    expected = [(what.format(name), number, len(stages)) for number, name in enumerate(stages)]
    assert told == [*expected, ("built with TensorRT 10.13.2.6", len(stages), len(stages))]
    told.clear()
    with Separator(complete, engine=make(), report=report):
        assert told == [], "all is there"


def test_what_runs_segments_in_float32_is_built_too(
    make: Make, library: FakeTensorRt, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is loaded when the first of these segments comes, in the middle of a song."""
    asked: list[tuple[str, str]] = []

    class Asked(FakeEngine):
        precisions = ("fp32", "fp16")

        def get_ready(self, bundle: Bundle, *_: object) -> None:  # type: ignore[override]
            asked.append((self.options.precision, bundle.manifest.precision))

    def lower(bundle: Bundle, *_: object) -> Bundle:
        return _Lower(bundle)  # type: ignore[return-value]

    monkeypatch.setattr(separator_module, "in_precision", lower)
    engine = Asked(options=EngineOptions(precision="fp16"))
    with Separator(bundle, engine=engine, gate=4.0):
        assert asked[:2] == [("fp16", "float16"), ("fp32", "float32")]
    asked.clear()
    with Separator(bundle, engine=Asked(options=EngineOptions(precision="fp16")), gate=float("inf")):
        assert set(asked) == {("fp16", "float16")}


class _Lower:
    """A bundle that says it is of lower precision."""

    def __init__(self, bundle: Bundle) -> None:
        from dataclasses import replace

        self.twin, self.digest = bundle, bundle.digest
        self.manifest = replace(bundle.manifest, precision="float16")


@pytest.mark.parametrize("quiet", [False, True])
def test_run_says_what_it_builds(library: FakeTensorRt, bundle: Bundle, tmp_path: Path, quiet: bool) -> None:
    complete, out = with_transforms(bundle), str(tmp_path / "out")
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, (200, 2))
    soundfile.write(tmp_path / "song.wav", noise, SAMPLE_RATE)
    command = ["run", str(tmp_path / "song.wav"), "-n", str(complete.path), "--engine", "trt", "-o", out]
    done = CliRunner().invoke(main, [*command, *(["-q"] if quiet else [])], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert ("2/7 building the engine of stage branch.16 with TensorRT 10.13.2.6" in done.stderr) != quiet
    assert len(list(Path(out).rglob("*.wav"))) == len(SOURCES)
    again = CliRunner().invoke(main, [*command, "--overwrite"], catch_exceptions=False)
    assert "building" not in again.stderr


def test_without_a_reporter_it_is_logged(
    make: Make, library: FakeTensorRt, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), closing(Scheduler(with_transforms(bundle), make())):
        assert "building the engine of stage branch.16 with TensorRT 10.13.2.6, 3 of 7" in caplog.text


def test_a_cache_that_cannot_be_written_costs_no_second_build(
    make: Make, library: FakeTensorRt, bundle: Bundle
) -> None:
    engine, complete = make(), with_transforms(bundle)
    engine.cache.folder = Path("/dev/null/engines")
    with closing(Scheduler(complete, engine)) as scheduler:
        scheduler.run(np.zeros((1, 2, 64), np.float32))
    assert len(library.of("build")) == len(library.of("load")) == len(complete.manifest.stages)


# --- auto --------------------------------------------------------------------------------------------------


class Failing(FakeEngine):
    """An engine that is there, and does not start."""

    def __init__(self, error: type[EngineError] = EngineError) -> None:
        super().__init__()
        self.error, self.ended = error, False

    def prepare(self, *_: object) -> Runner:  # type: ignore[override]
        raise self.error("its kernels do not fit", "Get another GPU.")

    def close(self) -> None:
        super().close()
        self.ended = True


def offered(monkeypatch: pytest.MonkeyPatch, *engines: FakeEngine) -> None:
    found = [Choice(engine, f"auto: {number}") for number, engine in enumerate(engines)]
    monkeypatch.setattr(separator_module, "choices", lambda *_arguments, **_options: iter(found))


def test_auto_passes_over_what_does_not_start(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = Failing(), Failing(), FakeEngine()
    offered(monkeypatch, first, second, third)
    with Separator(bundle, engine=AUTO) as separator:
        assert (separator.engine, separator.engine_reason) == (third, "auto: 2")
    assert first.ended
    assert second.ended
    assert (
        caplog.text.count("auto passes over engine fake, which does not start: its kernels do not fit") == 2
    )


@pytest.mark.parametrize("error", [EngineError, EngineUnavailableError])
def test_the_last_one_is_an_error(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: type[EngineError]
) -> None:
    offered(monkeypatch, Failing(), Failing(error))
    with pytest.raises(error, match="its kernels do not fit"):
        Separator(bundle, engine=AUTO)


def test_a_gpu_that_is_lost_is_passed_over_by_nobody(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Failing(DeviceLostError)
    offered(monkeypatch, lost, FakeEngine())
    with pytest.raises(DeviceLostError):
        Separator(bundle, engine=AUTO)
    assert lost.ended
