"""TensorRT for RTX: engines that can be captured, and kernels that are compiled once a machine, not once a process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import BuilderFlag, FakeRtx, RtxFlag, _RuntimeCache, _RuntimeConfig
from fake_tensorrt_engine import bundle, driver, rtx, stage, with_transforms
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.engines.cache import NewEngine
from mrsep_deploy.engines.contract import BuildOptions, EngineOptions
from mrsep_deploy.engines.tensorrt import engine as tensorrt_engine
from mrsep_deploy.engines.tensorrt.engine import TensorRtRtxEngine
from mrsep_deploy.engines.tensorrt.library import Gpu
from mrsep_deploy.errors import EngineError
from mrsep_deploy.runtime.schedule import MODES, Mode
from mrsep_deploy.runtime.scheduler import Scheduler

__all__ = ["bundle", "driver", "rtx", "stage"]

MIX = np.random.default_rng(3).standard_normal((1, 2, 64)).astype(np.float32)


def separated(bundle: Bundle, mode: Mode = "sequential", times: int = 3) -> NDArray[np.float32]:
    """The stems of a mix, from an engine of its own, as in a process of its own."""
    with (
        closing(TensorRtRtxEngine(EngineOptions())) as engine,
        closing(Scheduler(bundle, engine, mode)) as made,
    ):
        return [made.run(MIX).copy() for _ in range(times)][-1]


def kernel_files(folder: Path) -> Sequence[Path]:
    return sorted(folder.rglob("*.kernels"))


# --- captures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_same(rtx: FakeRtx, bundle: Bundle, mode: Mode) -> None:
    complete = with_transforms(bundle)
    np.testing.assert_array_equal(separated(complete, mode), separated(complete))


def test_engines_are_built_to_be_captured(rtx: FakeRtx, bundle: Bundle, stage: Stage) -> None:
    """It is part of what they are found by: any other is not taken, whatever mode it would do for."""
    built = TensorRtRtxEngine(EngineOptions()).build(bundle, stage, BuildOptions())
    ((_, config),) = rtx.of("build")
    assert config.flags == {RtxFlag.REQUIRE_USER_ALLOCATION}
    assert built.key.options["user_allocation"] is True


def test_an_engine_of_before_is_not_taken(rtx: FakeRtx, bundle: Bundle, stage: Stage) -> None:
    engine = TensorRtRtxEngine(EngineOptions())
    built = engine.build(bundle, stage, BuildOptions())
    engine.cache.prune(everything=True)
    old = {name: value for name, value in built.key.options.items() if name != "user_allocation"}
    engine.cache.get_or_build(replace(built.key, options=old), lambda: NewEngine(built.data, {}))
    assert engine._newest(bundle, stage) is None


def test_an_engine_that_cannot_be_captured_is_not(
    rtx: FakeRtx, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of every context after its first run, before the capture; other modes run it all the same."""
    monkeypatch.setattr(rtx, "BuilderFlag", BuilderFlag)  # of a release without the other flag
    complete = with_transforms(bundle)
    with pytest.raises(
        EngineError, match=r"stage \S+ cannot be captured .*allocate memory.*--mode sequential"
    ):
        separated(complete, "graph")
    separated(complete, "concurrent")


# --- compiled kernels --------------------------------------------------------------------------------------


def test_kernels_are_compiled_once(rtx: FakeRtx, bundle: Bundle, tmp_path: Path) -> None:
    complete = with_transforms(bundle)
    stages = len(complete.manifest.stages)
    separated(complete, "graph")
    assert len(rtx.compiled) == stages, "the contexts of one engine share them"
    separated(complete)
    assert len(rtx.compiled) == stages
    assert len(kernel_files(tmp_path)) == stages


def test_another_driver_compiles_anew(
    rtx: FakeRtx, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = with_transforms(bundle)
    separated(complete)
    monkeypatch.setattr(tensorrt_engine, "find_gpu", lambda _index: Gpu("Fake GPU", "sm_86", "590.1"))
    separated(complete)
    stages = len(complete.manifest.stages)
    assert len(rtx.compiled) == len(kernel_files(tmp_path)) == 2 * stages
    assert len(rtx.of("build")) == stages, "the engines are the same"


@pytest.mark.parametrize("damage", ["refused", "changed", "cut"])
def test_kernels_that_are_not_what_was_written_are_not_loaded(
    rtx: FakeRtx, bundle: Bundle, tmp_path: Path, damage: str
) -> None:
    """Compiled kernels are code: bytes that were changed are not even shown to the library."""
    complete = with_transforms(bundle)
    separated(complete)
    stages, shown = len(complete.manifest.stages), []
    whole = [path.read_bytes() for path in kernel_files(tmp_path)]
    if damage == "refused":
        rtx.environment = b"driver 590"
    for path in kernel_files(tmp_path) if damage != "refused" else ():
        path.write_bytes(path.read_bytes()[:-1] + (b"!" if damage == "changed" else b""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_RuntimeCache, "deserialize", _noting(shown))
        separated(complete)
    assert len(rtx.compiled) == 2 * stages
    assert len(shown) == (stages if damage == "refused" else 0)
    now = [path.read_bytes() for path in kernel_files(tmp_path)]
    assert (now == whole) == (damage != "refused"), "written anew"


def _noting(shown: list[bytes]) -> object:
    real = _RuntimeCache.deserialize

    def deserialize(self: _RuntimeCache, blob: bytes) -> bool:
        shown.append(blob)
        return real(self, blob)

    return deserialize


@pytest.mark.parametrize("what", ["runtime cache", "set runtime cache", "serialize"])
def test_a_library_that_keeps_none_still_runs(
    rtx: FakeRtx, bundle: Bundle, tmp_path: Path, what: str
) -> None:
    rtx.fails.add(what)
    separated(with_transforms(bundle))
    assert kernel_files(tmp_path) == []


def test_a_disk_that_takes_none(
    rtx: FakeRtx, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "mrsep_deploy.engines.cache.EngineCache.kernels_file", lambda *_: Path("/dev/null/kernels")
    )
    separated(with_transforms(bundle))
    assert "compiled kernels are not kept for the next run" in caplog.text


def test_kernels_go_with_their_engine(rtx: FakeRtx, bundle: Bundle, tmp_path: Path) -> None:
    separated(with_transforms(bundle))
    cache = TensorRtRtxEngine(EngineOptions()).cache
    cache.prune()
    first, *others = kernel_files(tmp_path)
    (cache.folder / f"{first.name.split('.')[0]}.json").unlink()
    cache.prune()
    assert kernel_files(tmp_path) == others
    cache.prune(everything=True)
    assert list(cache.folder.iterdir()) == []


def test_the_fake_has_the_real_librarys_names() -> None:
    real = pytest.importorskip("tensorrt_rtx_bindings")
    for fake, name in ((_RuntimeConfig, "IRuntimeConfig"), (_RuntimeCache, "IRuntimeCache")):
        methods = {each for each in vars(fake) if not each.startswith("_")}
        assert methods <= set(dir(getattr(real, name))), name
    assert real.BuilderFlag.REQUIRE_USER_ALLOCATION is not None
    assert {"create_runtime_config", "create_execution_context"} <= set(dir(real.ICudaEngine))
    assert {"is_stream_capturable", "set_device_memory"} <= set(dir(real.IExecutionContext))
