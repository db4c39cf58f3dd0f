"""Several GPUs: engines are built, loaded and run on the one that is meant, whichever is the thread's current one."""

from __future__ import annotations

import json
import math
import threading
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from fake_cuda import FakeDriver
from fake_tensorrt import FakeTensorRt
from fake_tensorrt_engine import bundle, driver, library, stage, with_transforms

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.licence import Licence
from mrsep_deploy.commands.main import main
from mrsep_deploy.commands.run_reports import introduce
from mrsep_deploy.devices import CUDA_PYTHON, CUDA_VARIABLE, PYCUDA
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.engines.tensorrt import engine as tensorrt_engine
from mrsep_deploy.engines.tensorrt.engine import TensorRtEngine
from mrsep_deploy.engines.tensorrt.library import find_gpu
from mrsep_deploy.runtime.plan import RunPlan
from mrsep_deploy.runtime.scheduler import Scheduler

__all__ = ["bundle", "driver", "library", "stage"]

MIX = np.random.default_rng(3).standard_normal((1, 2, 64)).astype(np.float32)


@pytest.mark.parametrize("implementation", [CUDA_PYTHON, PYCUDA])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_gpus_in_one_thread(
    library: FakeTensorRt,
    driver: FakeDriver,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    implementation: str,
    order: tuple[int, int],
) -> None:
    """Both are open before the first is used; the one that was opened last is the thread's current one."""
    monkeypatch.setenv(CUDA_VARIABLE, implementation)
    complete, stems = with_transforms(bundle), []
    engines = [TensorRtEngine(EngineOptions(device=index)) for index in order]
    opened = [engine.device for engine in engines]
    for engine in engines:
        with closing(Scheduler(complete, engine)) as scheduler:
            stems.append(scheduler.run(MIX).copy())
    stages = len(complete.manifest.stages)
    assert library.of("load") == [(order[0],)] * stages + [(order[1],)] * stages
    assert library.of("built on") == [(order[0],)] * stages, "the other GPU is alike"
    np.testing.assert_array_equal(*stems)
    assert driver.violations == []
    for device in opened:
        device.close()


def test_another_thread_than_the_one_that_opened_the_device(
    library: FakeTensorRt, driver: FakeDriver, bundle: Bundle
) -> None:
    engine, complete = TensorRtEngine(EngineOptions(device=1)), with_transforms(bundle)
    _ = engine.device

    def separate() -> None:
        with closing(Scheduler(complete, engine, "concurrent")) as scheduler:
            scheduler.run(MIX)

    thread = threading.Thread(target=separate)
    thread.start()
    thread.join(60)
    assert set(library.of("load")) == set(library.of("built on")) == {(1,)}
    engine.close()


def test_build_is_told_the_gpu(library: FakeTensorRt, bundle: Bundle) -> None:
    command = ["build", str(bundle.path), "--engine", "trt", "--json", "-q"]
    done = CliRunner().invoke(main, [*command, "--device", "cuda:1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)) == len(library.of("built on"))
    assert set(library.of("built on")) == {(1,)}
    wrong = CliRunner().invoke(main, [*command, "--device", "cpu"])
    assert wrong.exit_code == 2
    assert "engine trt does not run on cpu" in wrong.stderr


def test_a_gpu_that_is_not_there(
    library: FakeTensorRt, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_engine, "find_gpu", find_gpu)
    assert TensorRtEngine.availability(1).works
    found = TensorRtEngine.availability(2)
    assert not found.works
    assert found.reason.startswith("there is no GPU 2, CUDA finds 0 (NVIDIA Fake 3090), 1 (")


def test_the_first_line_of_a_run_names_the_gpu(
    library: FakeTensorRt, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tensorrt_engine, "_usable_gpu", lambda _library, index: f"GPU number {index}")
    separator = SimpleNamespace(
        engine=TensorRtEngine(EngineOptions(device=1)), manifest=bundle.manifest, run_plan=RunPlan(),
        sources=("drums",), engine_reason="", gate=math.inf,
    )  # fmt: skip
    introduce("tiny", separator, Licence(), "", ())  # type: ignore[arg-type]
    assert "GPU number 1" in capsys.readouterr().err
