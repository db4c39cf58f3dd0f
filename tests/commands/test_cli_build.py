"""``build`` and ``cache``: what they print and what they refuse."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import wide_terminal
from filelock import FileLock
from wide_terminal import run

from mrsep_deploy.engines.cache import EngineCache

RTX = ("build", "tiny", "--engine", "trt-rtx", "--target", "sm_86")


bundle = wide_terminal.bundle


@pytest.fixture
def rtx() -> None:
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason='TensorRT for RTX is not installed: pip install ".[rtx]"'
    )


# --- build -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_build_says_what_it_built(jobs: str) -> None:
    result = run(*RTX, "--jobs", jobs)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    keys = [entry.name for entry in EngineCache().entries()]
    assert lines[0].split() == ["stage", "build", "engine", "in", "and", "out", "layers", "key"]
    assert [line.split()[0] for line in lines[1:3]] == ["branch.16", "branch.time"]
    assert sorted(line.split()[-1] for line in lines[1:3]) == sorted(keys)
    assert lines[-1] == f"kept in {EngineCache().folder}"
    assert "branch.16 built in" in result.stderr


@pytest.mark.usefixtures("rtx")
def test_building_again_takes_the_cache() -> None:
    first, again = (json.loads(run(*RTX, "-q", "--json").stdout) for _ in range(2))
    assert [stage["from_cache"] for stage in first + again] == [False, False, True, True]
    assert [stage["key"] for stage in first] == [stage["key"] for stage in again]
    assert first[0]["tensors"] == {"spectrogram_16": "float32", "estimate_16": "float32"}
    assert first[0]["layers"] == {"float32": 2}


@pytest.mark.usefixtures("rtx")
def test_output_is_a_folder_to_copy_into_a_cache(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert run(*RTX, "-q", "-o", str(folder)).exit_code == 0
    assert EngineCache().entries() == []
    EngineCache().folder.parent.mkdir(parents=True)
    folder.rename(EngineCache().folder)
    assert "branch.16 cached" in run(*RTX).stderr


@pytest.mark.usefixtures("rtx")
def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(*RTX, "-o", str(tmp_path / "file" / "out"))
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


@pytest.mark.usefixtures("rtx")
def test_stages_without_a_graph_are_mentioned() -> None:
    assert "tiny has no graphs for spectrogram.16, normalize.time, inverse.16" in run(*RTX).stderr


def test_an_engine_without_a_build_step() -> None:
    result = run("build", "tiny", "--engine", "torch")
    assert result.exit_code == 0
    assert result.stdout == "Engine torch has no build step: it takes a bundle's graphs as they are.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--engine", "trt-rtx", "--batch", "99999"), 2, "a batch of 99999 segments was asked for, 1 to "),
        (("--engine", "trt", "--jobs", "2"), 2, "trt builds one stage at a time"),
        (("--engine", "trt-rtx", "--target", "86"), 2, "'86' is not of the form sm_86"),
        (("--engine", "trt-rtx", "--optimization-level", "6"), 2, "0<=x<=5"),
        (("--engine", "none"), 2, "'none' is not one of"),
        ((), 2, "Missing option '--engine'"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run("build", "tiny", *arguments)
    assert result.exit_code == code
    assert message in result.stderr


def test_a_batch_has_a_run_plan_of_its_own() -> None:
    for batch in ("1", "2"):
        said = run("build", "tiny", "--engine", "ort", "--threads", "1", "--batch", batch).stdout
        assert ("--engine ort --batch 2 and" in said) == (batch == "2")
    plans = json.loads(run("cache", "list", "--json").stdout)
    assert sorted(plan["key"]["batch"] for plan in plans) == [1, 2]


@pytest.mark.usefixtures("rtx")
def test_engines_of_a_batch() -> None:
    built = [json.loads(run(*RTX, "-q", "--json", *more).stdout) for more in ((), ("--batch", "2"))]
    assert [stage["from_cache"] for stage in built[1]] == [False, False]
    assert not {stage["key"] for stage in built[0]} & {stage["key"] for stage in built[1]}


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_errors_of_a_build_name_the_stage_or_the_target(jobs: str) -> None:
    result = run("build", "tiny", "--engine", "trt-rtx", "--target", "sm_90", "--jobs", jobs)
    assert result.exit_code == 2
    assert "does not build for sm_90, it builds for sm_75" in result.stderr
    result = run(*RTX, "--precision", "mixed", "--jobs", jobs)
    assert result.exit_code == 2
    assert "--precision mixed was given without a plan, expected --plan FILE" in result.stderr


@pytest.mark.usefixtures("rtx")
def test_another_precision_is_converted_and_its_costs_are_shown() -> None:
    result = run(*RTX, "--precision", "fp16")
    assert result.exit_code == 0, result.stderr
    assert "float32 MACs" in result.stdout
    stages = {
        stage["stage"]: stage for stage in json.loads(run(*RTX, "--precision", "fp16", "--json", "-q").stdout)
    }
    branch = stages["branch.16"]
    assert branch["from_cache"]
    assert set(branch["layers"]) == {"float16"}
    assert branch["cost"]["casts"] == 2  # the border is float32, between the host's transforms
    assert json.loads(run(*RTX, "--json", "-q").stdout)[0]["cost"] is None


# --- cache -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rtx")
def test_cache_list() -> None:
    run(*RTX, "-q")
    lines = run("cache", "list").stdout.splitlines()
    assert lines[-1].startswith("2 engines, ")
    assert {tuple(line.split()[1:3]) for line in lines[1:3]} == {
        ("tiny", "branch.16"),
        ("tiny", "branch.time"),
    }
    assert all("trt-rtx" in line and "sm_86" in line for line in lines[1:3])
    entries = json.loads(run("cache", "list", "--json").stdout)
    assert [entry["key"]["target"] for entry in entries] == ["sm_86", "sm_86"]


def test_an_empty_cache() -> None:
    assert run("cache", "list").stdout == f"0 engines, 0 B, in {EngineCache().folder}\n"
    assert run("cache", "list", "--json").stdout == "[]\n"
    assert run("cache", "prune").stdout == "deleted 0 engines, 0 B\n"


@pytest.mark.usefixtures("rtx")
def test_cache_prune() -> None:
    run(*RTX, "-q")
    assert run("cache", "prune").stdout == "deleted 0 engines, 0 B\n"
    old = EngineCache().entries()[0]
    then = time.time() - 31 * 86400
    for path in EngineCache().folder.glob(f"{old.name}.*"):
        os.utime(path, (then, then))
    assert run("cache", "prune", "--older-than", "30").stdout.startswith("deleted 1 engines, ")
    assert run("cache", "prune", "--all").stdout.startswith("deleted 1 engines, ")
    assert list(EngineCache().folder.iterdir()) == []


def others(home: Path) -> list[Path]:
    """A file in every folder of the cache that is not the engines' or the run plans'."""
    places = [
        home / "cache" / place for place in ("bundles/a1/graph.onnx", "ort-trt/b2/one.engine", "torch/c3")
    ]
    for place in places:
        place.parent.mkdir(parents=True)
        place.write_bytes(b"12345")
    return places


def test_the_cache_is_more_than_engines(tmp_path: Path) -> None:
    run("build", "tiny", "--engine", "ort", "--threads", "1", "-q")
    places = others(home := tmp_path / "home")
    lines = run("cache", "list").stdout.splitlines()
    assert any(
        line.startswith("1 run plan, ") and line.endswith(f"in {home / 'cache' / 'plans'}") for line in lines
    )
    assert f"1 unpacked or converted bundle, 5 B, in {home / 'cache' / 'bundles'}" in lines
    assert f"1 engine cache of ONNX Runtime, 5 B, in {home / 'cache' / 'ort-trt'}" in lines
    assert f"1 cache of PyTorch, 5 B, in {home / 'cache' / 'torch'}" in lines
    (entry,) = json.loads(run("cache", "list", "--json").stdout)
    assert (entry["key"]["engine"], entry["details"]["model"]) == ("ort", "tiny")
    assert entry["details"]["stage"] == "run plan: sequential"
    assert run("cache", "prune").stdout == "deleted 0 engines, 0 B\n"
    assert all(place.exists() for place in places)
    found = run("cache", "prune", "--all").stdout
    assert found.startswith(
        "deleted 0 engines, 1 run plan, 1 unpacked or converted bundle, 1 engine cache of ONNX Runtime, "
        "1 cache of PyTorch, "
    )
    assert [path for path in (home / "cache").rglob("*") if path.is_file()] == []


def test_a_bundle_that_is_being_converted_stays(tmp_path: Path) -> None:
    graph = others(home := tmp_path / "home")[0]
    with FileLock(home / "cache" / "bundles" / "a1.lock"):
        assert "; 1 are being built and stay" in run("cache", "prune", "--all").stdout
    assert graph.exists()
    assert not (home / "cache" / "torch" / "c3").exists()
