"""The precision that is asked for: from Python, and on the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from bundles import tiny_bundle
from click.testing import CliRunner, Result

import mrsep_deploy.precision.requested
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.registry import register
from mrsep_deploy.commands import main
from mrsep_deploy.engines import engine_class
from mrsep_deploy.errors import EngineUnavailableError, MrsepError, UsageError
from mrsep_deploy.precision.convert_bundle import convert_bundle
from mrsep_deploy.precision.names import ASKED, AskedPrecision, arithmetic
from mrsep_deploy.precision.plan import PrecisionPlan, default_plan, write_plan
from mrsep_deploy.precision.requested import in_precision, is_mixed
from mrsep_deploy.separation.separator import Separator

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    write_plan(PrecisionPlan("float16", (), {"branch.16": ("Add*",)}), tmp_path / "plan.json")
    return tmp_path / "plan.json"


# --- a bundle in another precision -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found"), [(None, "float32"), ("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")]
)
def test_a_float32_bundle_becomes_what_is_asked_for(
    bundle: Bundle, asked: AskedPrecision | None, found: str
) -> None:
    made = in_precision(bundle, asked)
    assert made.manifest.precision == found
    assert (made is bundle) == (found == "float32")
    assert not is_mixed(made.manifest)


def test_mixed_is_the_plan(bundle: Bundle, plan: Path) -> None:
    made = in_precision(bundle, "mixed", plan)
    assert made.manifest.precision == "float16"
    assert is_mixed(made.manifest)
    assert in_precision(made, "mixed") is made
    assert in_precision(made, "fp16") is made


@pytest.mark.parametrize(
    ("held", "asked", "message"),
    [
        ("float16", "fp32", "holds float16 graphs, expected float32 for fp32. Choose --precision fp16"),
        ("float16", "bf16", "holds float16 graphs, expected bfloat16 for bf16"),
        ("bfloat16", "fp16", "holds bfloat16 graphs, expected float16 for fp16. Choose --precision bf16"),
        ("float16", "mixed", "without a plan of its own, expected such a plan for mixed"),
        ("float32", "mixed", "--precision mixed was given without a plan, expected --plan FILE"),
    ],
)
def test_what_cannot_be_had(
    bundle: Bundle, tmp_path: Path, held: str, asked: AskedPrecision, message: str
) -> None:
    if held != "float32":
        bundle = convert_bundle(bundle, default_plan(held, ()), tmp_path / held)  # type: ignore[arg-type]
        assert in_precision(bundle, None) is bundle
        assert in_precision(bundle, arithmetic(bundle.manifest)) is bundle
    with pytest.raises(UsageError) as caught:
        in_precision(bundle, asked)
    assert message in str(caught.value)


@pytest.mark.parametrize("asked", [None, "fp32", "fp16", "bf16"])
def test_a_plan_needs_mixed(bundle: Bundle, plan: Path, asked: AskedPrecision | None) -> None:
    with pytest.raises(UsageError, match="expected --precision mixed"):
        in_precision(bundle, asked, plan)


def test_a_plan_needs_a_float32_bundle(bundle: Bundle, plan: Path) -> None:
    with pytest.raises(UsageError, match="holds float16 graphs already, expected float32 ones for a plan"):
        in_precision(in_precision(bundle, "fp16"), "mixed", plan)


def test_without_onnx(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    half = in_precision(bundle, "fp16")
    monkeypatch.setattr(mrsep_deploy.precision.requested.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(
        EngineUnavailableError, match=r'needs onnx, which is not installed\. pip install "onnx'
    ):
        in_precision(bundle, "fp16")
    assert in_precision(bundle, "fp32") is bundle
    with pytest.raises(EngineUnavailableError, match=r"running float16 graphs on a CPU needs onnx"):
        Separator(half, engine="ort")


# --- separating --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_a_separator_in_float16(bundle: Bundle, engine: str) -> None:
    if not engine_class(engine).availability().works:
        pytest.skip(f"no {engine}")
    mix = np.random.default_rng(1).standard_normal((2, 4000)).astype(np.float32)
    with (
        Separator(bundle, engine=engine) as exact,
        Separator(bundle, engine=engine, precision="fp16", gate=math.inf) as low,
    ):
        assert low.manifest.precision == "float16"
        assert low.engine.options.precision == "fp16"
        expected, found = exact.separate(mix), low.separate(mix)
    for name, stem in expected.items():
        np.testing.assert_allclose(found[name], stem, atol=0.02 * np.abs(stem).max())


@pytest.mark.parametrize("engine", ["torch", "ort-cuda"])
def test_engines_without_it_say_so(bundle: Bundle, engine: str) -> None:
    with pytest.raises(MrsepError, match=engine):
        Separator(bundle, engine=engine, precision="fp16")


# --- the command line --------------------------------------------------------------------------------------


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main.main, arguments)


@pytest.fixture
def song(bundle: Bundle, tmp_path: Path) -> Path:
    import soundfile

    register(bundle)
    samples = np.random.default_rng(2).standard_normal((4000, 2)) * 0.1
    soundfile.write(tmp_path / "song.wav", samples, bundle.manifest.model.sample_rate)
    return tmp_path / "song.wav"


@pytest.mark.parametrize(
    ("engine", "said"),
    [("ort", "rounded after every operator as on a GPU"), ("openvino", "with less error than on a GPU")],
)
def test_run_says_that_it_emulates(song: Path, tmp_path: Path, engine: str, said: str) -> None:
    if not engine_class(engine).availability().works:
        pytest.skip(f"no {engine}")
    common = ("run", str(song), "--engine", engine, "-o", str(tmp_path / "out"))
    result = command(*common, "--precision", "fp16")
    assert result.exit_code == 0, result.stderr
    line = next(line for line in result.stderr.splitlines() if line.startswith("Precision: "))
    assert line.startswith("Precision: float16, emulated: ")
    assert said in line
    assert "Precision" not in command(*common).stderr


def test_run_with_a_plan(song: Path, plan: Path, tmp_path: Path) -> None:
    common = ("run", str(song), "--engine", "ort", "-o", str(tmp_path / "out"), "--plan", str(plan))
    assert command(*common, "--precision", "mixed").exit_code == 0
    wrong = command(*common, "--precision", "fp16")
    assert wrong.exit_code == 2
    assert "a plan was given with --precision fp16, expected --precision mixed" in wrong.stderr
    plan.write_text(json.dumps({"precision": "float16"}))
    broken = command(*common, "--precision", "mixed")
    assert broken.exit_code == 2
    assert "has no field 'format'" in broken.stderr


def test_every_command_knows_the_same_precisions() -> None:
    for name in ("run", "build", "export"):
        assert f"[{'|'.join(ASKED)}]" in " ".join(command(name, "--help").stdout.split())


SMALL = (
    "channels=4",
    "depth=2",
    "nfft=512",
    "samplerate=8000",
    "segment=1",
    "t_layers=1",
    "t_heads=2",
    "dconv_comp=2",
)


@pytest.mark.slow
def test_an_export_in_float16(tmp_path: Path, plan: Path) -> None:
    """The bundle that is written, registered and shown is the converted one."""
    settings = [word for value in SMALL for word in ("--set", value)]
    common = ("export", "--untrained", "htdemucs", *settings, "-n", "small", "--json", "-q")
    result = command(*common, "--precision", "fp16")
    assert result.exit_code == 0, result.stderr
    shown = json.loads(result.stdout)
    assert shown["precision"] == "float16"
    assert set(shown["costs"]) == {stage["name"] for stage in shown["stages"] if stage["kind"] == "graph"}
    assert Bundle.open(shown["path"]).manifest.precision == "float16"
    assert shown["whole"] is None
    assert command(*common, "--overwrite", "--precision", "mixed").exit_code == 2
    wrong = command(*common, "--overwrite", "--precision", "mixed", "--plan", str(plan))
    assert wrong.exit_code == 2
    assert "a stage 'branch.16', this bundle has the graphs" in wrong.stderr
    assert Bundle.open(shown["path"]).manifest.precision == "float16"
