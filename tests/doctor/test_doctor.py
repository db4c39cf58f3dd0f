"""The doctor: every known conflict is found where it is, and nowhere else; the command says all there is to say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mrsep_deploy.commands.main import main
from mrsep_deploy.doctor import diagnosis as module
from mrsep_deploy.doctor.conflicts import CHECKS, LOW_DISK, find_conflicts
from mrsep_deploy.doctor.environment import Environment, FolderState, look
from mrsep_deploy.engines import ENGINE_NAMES, engine_class
from mrsep_deploy.engines.contract import Availability
from mrsep_deploy.files.paths import HOME_VARIABLE

GPU = Environment(
    distributions={
        "onnxruntime-gpu": "1.31.1",
        "nvidia-cuda-runtime": "13.0.96",
        "nvidia-cudnn-cu13": "9.13.0",
        "tensorrt-cu13": "10.14.1",
        "torch": "2.13.0",
        "cuda-python": "13.1.0",
        "cuda-bindings": "13.1.0",
        "pycuda": "2026.1",
        "av": "18.1.0",
    },
    libraries=frozenset({"libnvinfer.so.10", "libcudart.so.13"}),
    onnxruntime_cuda="13.0",
    onnxruntime_tensorrt=10,
    torch_cuda="13.0",
    driver="13.0",
    cores=8,
    budget=8,
    folders=(FolderState("models", "/home/a/models", free_bytes=10**12),),
)
"""A machine with everything as it should be."""


def checks_found(env: Environment, *levels: str) -> set[str]:
    return {
        finding.check for finding in find_conflicts(env) if finding.level in (levels or ("error", "warning"))
    }


def having(env: Environment = GPU, **versions: str) -> Environment:
    """The environment with other packages; an empty version takes one away."""
    packages = {
        **env.distributions,
        **{name.replace("_", "-"): version for name, version in versions.items()},
    }
    return replace(env, distributions={name: version for name, version in packages.items() if version})


def test_a_machine_as_it_should_be() -> None:
    assert checks_found(GPU) == set()
    assert checks_found(Environment(distributions={"onnxruntime": "1.32", "av": "18"})) == set()


def test_every_finding_says_what_to_do() -> None:
    worst = replace(
        having(onnxruntime="1.32.0", nvidia_cuda_runtime="12.9.1", nvidia_cudnn_cu13="8.9", av="",
               tensorrt_cu13="11.4", cuda_bindings="12.1", pycuda="2020.1"),
        libraries=frozenset(), torch_cuda="12.8", driver="12.8", cores=16, budget=2,
        variables={"OMP_NUM_THREADS": "16"},
        folders=(FolderState("models", "/m", problem="Read-only file system"),
                 FolderState("caches", "/c", free_bytes=1000)),
    )  # fmt: skip
    found = find_conflicts(worst)
    assert {finding.check for finding in found} >= {
        "onnxruntime", "onnxruntime-cuda", "onnxruntime-cudnn", "onnxruntime-tensorrt", "torch-cuda", "driver",
        "cuda-python", "pycuda", "audio", "folders", "disk", "threads",
    }  # fmt: skip
    assert len({finding.check for finding in found}) >= len(CHECKS)
    for finding in found:
        assert finding.message
        assert finding.fix
        assert "\n" not in finding.message + finding.fix
    levels = [finding.level for finding in found]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)


@pytest.mark.parametrize("other", ["onnxruntime", "onnxruntime-directml", "onnxruntime-openvino"])
def test_two_builds_of_onnxruntime(other: str) -> None:
    env = replace(GPU, distributions={**GPU.distributions, other: "1.32.0"})
    (found,) = [f for f in find_conflicts(env) if f.check == "onnxruntime"]
    assert found.level == "error"
    assert f"{other}" in found.message
    assert found.fix.endswith("pip install onnxruntime-gpu")


@pytest.mark.parametrize(
    ("wheels", "wrong"),
    [
        ({"nvidia_cuda_runtime": "12.9"}, {"onnxruntime-cuda"}),
        ({"nvidia_cuda_runtime": "", "nvidia_cuda_runtime_cu12": "12.9"}, {"onnxruntime-cuda"}),
        ({"nvidia_cuda_runtime_cu12": "12.9"}, set()),  # both: ONNX Runtime finds its own
        ({"nvidia_cuda_runtime": ""}, set()),  # CUDA is the system's
        ({"nvidia_cudnn_cu13": "8.9.7"}, {"onnxruntime-cudnn"}),
        ({"nvidia_cudnn_cu12": "8.9.7"}, set()),  # of somebody else
    ],
)
def test_the_libraries_onnxruntime_needs(wheels: dict[str, str], wrong: set[str]) -> None:
    assert checks_found(having(GPU, **wheels)) == wrong


def test_tensorrt_11_beside_the_provider_for_10() -> None:
    env = replace(having(tensorrt_cu13="11.4.0"), libraries=frozenset({"libnvinfer.so.11"}))
    assert checks_found(env) == {"onnxruntime-tensorrt"}
    assert checks_found(having(env, onnxruntime_gpu="")) == set()
    assert checks_found(replace(env, libraries=GPU.libraries)) == set()


def test_torch_beside_another_cuda() -> None:
    (found,) = [f for f in find_conflicts(replace(GPU, torch_cuda="12.8")) if f.level != "note"]
    assert found.check == "torch-cuda"
    assert "12" in found.message
    assert "13" in found.message
    assert checks_found(replace(GPU, torch_cuda="")) == set()  # torch without CUDA


def test_a_driver_older_than_the_libraries() -> None:
    env = having(cuda_python="12.9", cuda_bindings="12.9")
    assert checks_found(replace(env, driver="12.8")) == {"driver"}
    assert checks_found(replace(env, driver="")) == set()  # no GPU: the engines say so
    assert checks_found(replace(env, driver="14.1")) == set()  # drivers run what is older


@pytest.mark.parametrize(
    ("python", "bindings", "driver", "wrong"),
    [
        ("13.1.0", "12.9.4", "13.0", True),
        ("13.1.0", "13.0.1", "13.0", False),
        ("", "13.0.1", "13.0", False),
        ("", "", "13.0", False),
        ("14.0", "14.0", "13.0", True),
    ],
)
def test_majors_of_cuda_python(python: str, bindings: str, driver: str, wrong: bool) -> None:
    env = replace(having(cuda_python=python, cuda_bindings=bindings), driver=driver)
    assert ("cuda-python" in checks_found(env)) == wrong


def test_pycuda_that_cannot_share_a_context() -> None:
    assert checks_found(having(pycuda="2020.1")) == {"pycuda"}
    assert "pycuda" in checks_found(GPU, "note")
    env = replace(having(pycuda=""), variables={"MRSEP_DEPLOY_CUDA": "pycuda"})
    assert checks_found(env) == {"pycuda"}


def test_compressed_audio_without_ffmpeg() -> None:
    assert "audio" in checks_found(having(av=""), "note")
    assert "audio" not in checks_found(GPU, "note")


def test_folders_that_cannot_be_written_or_are_full() -> None:
    blocked = FolderState("models", "/m", problem="Permission denied")
    nowhere = FolderState("caches", "", problem="this user has no home folder")
    full = FolderState("caches", "/c", free_bytes=LOW_DISK - 1)
    for folder, check in ((blocked, "folders"), (nowhere, "folders"), (full, "disk")):
        assert checks_found(replace(GPU, folders=(folder,))) == {check}


def test_threads_beyond_a_containers_quota() -> None:
    limited = replace(GPU, cores=64, budget=4)
    assert checks_found(limited) == set()
    assert "threads" in checks_found(limited, "note")
    assert checks_found(replace(limited, variables={"OMP_NUM_THREADS": "64"})) == {"threads"}
    assert checks_found(replace(limited, variables={"OMP_NUM_THREADS": "4"})) == set()


# --- looking


def test_looking_at_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "not" / "yet"))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    env = look()
    assert env.distributions["numpy"]
    assert env.distributions["mrsep-deploy"]
    assert 1 <= env.budget <= env.cores
    assert env.variables["OMP_NUM_THREADS"] == "3"
    assert len(env.folders) == 2
    for folder in env.folders:
        assert folder.path.startswith(str(tmp_path))
        assert folder.problem == ""
        assert folder.free_bytes > 0
    assert not (tmp_path / "not").exists()  # looking makes nothing


def test_looking_where_there_is_no_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "file" / "below"))
    assert all(folder.problem for folder in look().folders)
    monkeypatch.setenv(HOME_VARIABLE, "relative")
    assert all(folder.problem and not folder.path for folder in look().folders)


# --- the command


def only(monkeypatch: pytest.MonkeyPatch, *working: str) -> None:
    for name in ENGINE_NAMES:
        works = name in working
        found = Availability(
            works, "1.2.3", "a device", "" if works else "it is missing", "" if works else "get it"
        )
        monkeypatch.setattr(
            engine_class(name), "availability", classmethod(lambda cls, device=0, found=found: found)
        )


def test_the_command_lists_every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "ort", "torch")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    for name in ENGINE_NAMES:
        assert name in result.output
    assert "it is missing. get it" in result.output
    assert "auto takes ort" in result.output


def test_the_command_fails_where_no_engine_works(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "No engine works" in result.output
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.output)["healthy"] is False


def test_json_holds_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "openvino", "ort")
    monkeypatch.setattr(module, "look", lambda: having(onnxruntime="1.32"))
    result = CliRunner().invoke(main, ["doctor", "--json"])
    tree = json.loads(result.output)
    assert tree["healthy"] is True
    assert tree["auto"] == "openvino"
    assert [engine["name"] for engine in tree["engines"]] == list(ENGINE_NAMES)
    assert tree["findings"][0]["check"] == "onnxruntime"
    assert tree["folders"]


def test_an_engine_whose_check_breaks_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "ort")

    def broken(cls: object, device: int) -> Availability:
        raise OSError("undefined symbol")

    monkeypatch.setattr(engine_class("trt"), "availability", classmethod(broken))
    found = module.examine()
    assert found.healthy
    (report,) = [engine for engine in found.engines if engine.name == "trt"]
    assert "undefined symbol" in report.availability.reason


def test_it_asks_about_the_gpu_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "ort")

    def named(cls: object, device: int) -> Availability:
        return Availability(True, "1", f"GPU {device}")

    monkeypatch.setattr(engine_class("ort-cuda"), "availability", classmethod(named))
    assert "GPU 0" in CliRunner().invoke(main, ["doctor"]).output
    assert "GPU 1" in CliRunner().invoke(main, ["doctor", "--device", "cuda:1"]).output
    assert CliRunner().invoke(main, ["doctor", "--device", "cpu"]).exit_code == 2
