"""OpenVINO: how stages are compiled, where results land, what the cache is trusted with, how exact it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from bundles import OFFSET, tiny_bundle
from goldens import Export, golden

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Manifest, Stage
from mrsep_deploy.devices.interface import Stream
from mrsep_deploy.engines.cache import EngineCache
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.engines.openvino import OpenVinoEngine, OpenVinoRunner, borrowed, reason
from mrsep_deploy.errors import EngineError
from mrsep_deploy.files.paths import HOME_VARIABLE
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.separation.separator import Separator

pytest.importorskip("openvino")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[OpenVinoEngine]:
    made = _engine(tmp_path)
    yield made
    made.device.close()


def _engine(tmp_path: Path) -> OpenVinoEngine:
    made = OpenVinoEngine(EngineOptions(threads=1))
    made.cache = EngineCache(tmp_path / "cache")
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path)


def first_stage(bundle: Bundle) -> Stage:
    return bundle.manifest.graph_stages[0]


def prepared(engine: OpenVinoEngine, bundle: Bundle, threads: int = 1) -> OpenVinoRunner:
    runner = engine.prepare(bundle, first_stage(bundle), threads, cast("Stream", None))
    assert isinstance(runner, OpenVinoRunner)
    return runner


def run(runner: OpenVinoRunner, bundle: Bundle, value: float = 1.0) -> dict[str, Any]:
    stage = runner.stage
    tensors = {n: np.full(bundle.manifest.tensor(n).shape, value, np.float32) for n in stage.inputs}
    tensors |= {n: np.full(bundle.manifest.tensor(n).shape, np.nan, np.float32) for n in stage.outputs}
    runner(tensors)
    return tensors


def output(runner: OpenVinoRunner, bundle: Bundle, value: float = 1.0) -> Any:
    return run(runner, bundle, value)[runner.stage.outputs[0]]


# --- compiling


@pytest.mark.parametrize("threads", [1, 2])
def test_stages_compute_in_float32_on_their_share_of_threads(
    engine: OpenVinoEngine, bundle: Bundle, threads: int
) -> None:
    for _ in ("compiled", "from the cache"):
        compiled = prepared(engine, bundle, threads).compiled
        assert "float32" in str(compiled.get_property("INFERENCE_PRECISION_HINT"))
        assert "ACCURACY" in str(compiled.get_property("EXECUTION_MODE_HINT"))
        assert int(compiled.get_property("INFERENCE_NUM_THREADS")) == threads
        assert int(compiled.get_property("NUM_STREAMS")) == 1
        assert not compiled.get_property("ENABLE_CPU_PINNING")


def test_results_land_in_the_given_memory(engine: OpenVinoEngine, bundle: Bundle) -> None:
    """Every run into the memory of that run, in the middle of a larger block, and nowhere else."""
    runner = prepared(engine, bundle)
    stage = runner.stage
    source, target = bundle.manifest.tensor(stage.inputs[0]), bundle.manifest.tensor(stage.outputs[0])
    given = np.ones(source.shape, np.float32)
    for _ in range(3):
        block = np.full(target.elements + 32, 7.0, np.float32)
        place = block[16:-16].reshape(target.shape)
        runner({source.name: given, target.name: place})
        np.testing.assert_array_equal(place, 1 + np.float32(OFFSET))
        assert (block[:16] == 7).all()
        assert (block[-16:] == 7).all()


def test_borrowed_memory_is_the_same_memory() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    view = borrowed(array)
    array[1, 2] = 9
    assert view[1, 2] == 9
    assert view.base is not array
    assert view.ctypes.data == array.ctypes.data


def test_half_precision_is_emulated_and_says_so() -> None:
    assert "float32" in OpenVinoEngine(EngineOptions(precision="fp16")).emulation


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Exception from src/core.cpp:132:\nException from src/x.cpp:9:\nNo such operator\n", "No such operator"),
        ("Exception from src/core.cpp:132:\nCheck 'a == b' failed at x.cpp\nthe shapes differ", "the shapes differ"),
        ("plain", "plain"),
        ("Exception from src/core.cpp:132:", "Exception from src/core.cpp:132:"),
        ("", "RuntimeError"),
    ],
)  # fmt: skip
def test_the_telling_line_of_a_message(message: str, expected: str) -> None:
    assert reason(RuntimeError(message)) == expected


# --- the cache


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages compiled from now on."""
    found: list[str] = []
    compile_stage: Callable[..., Any] = OpenVinoEngine._compile

    def counted(self: OpenVinoEngine, model: Any, manifest: Manifest, stage: Stage, settings: Any) -> Any:
        found.append(stage.name)
        return compile_stage(self, model, manifest, stage, settings)

    monkeypatch.setattr(OpenVinoEngine, "_compile", counted)
    return found


def test_a_stage_is_compiled_once(tmp_path: Path, bundle: Bundle, compilations: list[str]) -> None:
    results = [output(prepared(_engine(tmp_path), bundle, threads), bundle) for threads in (1, 2, 1)]
    assert compilations == [first_stage(bundle).name]
    np.testing.assert_array_equal(results[0], results[1])


def test_a_bundle_exported_again_is_compiled_again(tmp_path: Path, compilations: list[str]) -> None:
    """At the same path, of the same size and time: OpenVINO's own cache would not notice."""
    import os

    import onnx
    from bundles import tiny_files, tiny_manifest
    from onnx import numpy_helper

    from mrsep_deploy.bundle import write_bundle

    manifest, engine = tiny_manifest(), _engine(tmp_path)
    files = tiny_files(manifest)
    name = "branch.16.onnx"
    results = []
    for offset in (OFFSET, 0.5):
        model = onnx.load_from_string(files[name])
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([offset], np.float32), "offset"))
        bundle = write_bundle(
            tmp_path / "b", manifest, {**files, name: model.SerializeToString()}, overwrite=True
        )
        os.utime(tmp_path / "b" / name, (0, 0))
        results.append(output(prepared(engine, bundle), bundle).max())
    assert results == [1 + OFFSET, 1.5]
    assert len(compilations) == 2


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "gone"])
def test_a_damaged_cache_is_not_trusted(
    tmp_path: Path, bundle: Bundle, compilations: list[str], damage: str
) -> None:
    expected = output(prepared(_engine(tmp_path), bundle), bundle)
    (blob,) = (tmp_path / "cache").glob("*.engine")
    data = blob.read_bytes()
    damaged = {"truncated": data[:-9], "changed": data[:-1] + bytes([data[-1] ^ 1]), "empty": b""}
    blob.unlink()
    if damage in damaged:
        blob.write_bytes(damaged[damage])
    found = output(prepared(_engine(tmp_path), bundle), bundle)
    np.testing.assert_array_equal(found, expected)
    assert len(compilations) == 2


def test_what_openvino_refuses_is_compiled_anew(
    tmp_path: Path, bundle: Bundle, compilations: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its hash is right, and OpenVINO does not take it all the same."""
    from mrsep_deploy.engines.cache import NewEngine

    engine = _engine(tmp_path)
    key = engine._key(bundle, first_stage(bundle))
    engine.cache.get_or_build(key, lambda: NewEngine(b"nothing that was compiled", {}))
    with caplog.at_level(logging.WARNING):
        assert output(prepared(engine, bundle), bundle).max() == 1 + OFFSET
    assert first_stage(bundle).name in caplog.text
    prepared(_engine(tmp_path), bundle)
    assert len(compilations) == 1


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert output(prepared(_engine(tmp_path), bundle), bundle).max() == 1 + OFFSET
    assert "not kept" in caplog.text


def test_a_closed_runner_lets_go(engine: OpenVinoEngine, bundle: Bundle) -> None:
    runner = prepared(engine, bundle)
    runner.close()
    runner.close()
    assert runner.compiled is None


def test_a_failing_run_names_the_stage(engine: OpenVinoEngine, bundle: Bundle) -> None:
    runner = prepared(engine, bundle)
    stage = runner.stage
    wrong = {n: np.zeros((1, 1), np.float32) for n in (*stage.inputs, *stage.outputs)}
    with pytest.raises(EngineError, match=stage.name.replace(".", r"\.")):
        runner(wrong)


# --- exactness


@pytest.mark.slow
@pytest.mark.parametrize("name", ["htdemucs_nn", "htdemucs_2nn"])
def test_stems_are_as_exact_as_an_export_has_to_be(
    exports: Export, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From float64: 1e-5, as for the graphs themselves, whose norms must not be put together again."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    wanted = golden(name)
    bundle = exports(name)
    with Separator(bundle, engine="openvino", threads=2) as separator:
        found = separator.run_segments(wanted.mix[None])[0].copy()
    assert Deviation.between(found, wanted.stems).relative < 1e-5
