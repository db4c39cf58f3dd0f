"""``mrsep-deploy export``: one real export of a golden checkpoint, and everything that stops one early."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from mrsep_deploy import errors
from mrsep_deploy.bundle import Bundle, registry
from mrsep_deploy.commands import main
from mrsep_deploy.commands.arguments import parse_argument
from mrsep_deploy.export import api
from mrsep_deploy.export.checkpoint.read import read_checkpoint
from mrsep_deploy.export.families import FAMILIES, known_classes, rewrites, variants
from mrsep_deploy.inspection.inspect import inspect

CHECKPOINT = Path(__file__).parents[1] / "golden" / "htdemucs_n_vocals.th"
NAME = "htdemucs_n_vocals"


def invoke(home: Path, *arguments: str | Path) -> Result:
    runner = CliRunner(env={"MRSEP_DEPLOY_HOME": str(home)})
    return runner.invoke(main.main, ["export", *map(str, arguments)], prog_name=main.PROGRAM)


def complaint(result: Result, code: int = errors.FAILED) -> str:
    """The one line of an export that failed."""
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("mrsep-deploy: error: ")
    return result.stderr.strip()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The home and the output of one export; do not change the home."""
    home = tmp_path_factory.mktemp("home")
    result = invoke(home, CHECKPOINT, "--zip", home / "one.zip")
    assert result.exit_code == errors.DONE, result.output
    return home, result


@pytest.fixture
def home(exported: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that home, the export registered anew."""
    shutil.copytree(exported[0] / "models", tmp_path / "models")
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path))
    registry.register(Bundle.open(tmp_path / "models" / NAME))
    return tmp_path


# --- an export ---------------------------------------------------------------------------------------------


def test_the_table(exported: tuple[Path, Result]) -> None:
    home, result = exported
    found = inspect(home / "models" / NAME)
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    for stage in found.graphs:
        assert stage.check is not None
        assert rows[stage.name][-2:] == [f"{stage.check.exported.snr:.1f}", f"{stage.check.pytorch.snr:.1f}"]
        assert stage.check.exported.snr > 100
    assert found.whole is not None
    assert rows["whole"][-2] == f"{found.whole.exported.snr:.1f}"
    assert str(home / "models" / NAME) in result.stdout
    assert f"Without -n run takes {NAME} (exported last)." in result.stdout
    assert "untrained" not in result.stdout


def test_progress_goes_to_stderr_line_by_line(exported: tuple[Path, Result]) -> None:
    home, result = exported
    stages = [stage.name for stage in inspect(home / "models" / NAME).graphs]
    told = result.stderr.splitlines()
    assert {line.split()[-1] for line in told if " exporting " in line} >= set(stages)
    done, total = told[-1].removesuffix(" done").split("/")
    assert done == total


def test_the_export_is_registered_and_the_default(
    exported: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = exported
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(home))
    model, other = registry.list_models()
    assert (other.shipped, other.is_default) == (True, False)
    assert (model.name, model.is_default, model.managed, model.status) == (NAME, True, True, "ok")
    assert Bundle.open(home / "one.zip").digest == model.digest


def test_the_bundle_says_where_it_comes_from(exported: tuple[Path, Result]) -> None:
    found, before = inspect(exported[0] / "models" / NAME), inspect(CHECKPOINT)
    assert (found.provenance.checkpoint, found.provenance.sha256) == (
        *(CHECKPOINT.name,),
        before.provenance.sha256,
    )
    assert (found.provenance.storage, found.model) == (before.provenance.storage, before.model)
    assert found.provenance.rewrites == tuple(FAMILIES["demucs"].rewrites)
    assert [(s.name, s.macs, s.parameters) for s in found.stages] == [
        (s.name, s.macs, s.parameters) for s in before.stages
    ]
    assert [s.outputs[0].shape for s in found.stages] == [s.outputs[0].shape for s in before.stages]


@pytest.mark.parametrize("options", [["--json"], ["--quiet"], ["--json", "--quiet"]])
def test_what_is_printed(home: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    bundle = Bundle.open(home / "models" / NAME)
    monkeypatch.setattr(api, "export", lambda *_args, **_options: bundle)
    result = invoke(home, CHECKPOINT, "--zip", home / "again.zip", *options)
    assert result.exit_code == errors.DONE
    assert result.stderr == ""
    if "--json" not in options:
        assert result.stdout == ""
        return
    told = json.loads(result.stdout)
    assert (told["digest"], told["archive"]) == (bundle.digest, str(home / "again.zip"))
    assert told["stages"][-1]["check"]["relative_l2"] < 1e-5
    assert told["whole"]["snr_db"] > 100


def test_an_untrained_model_says_so(tmp_path: Path) -> None:
    arguments = ["nfft_list=256", "channels=4", "depth=2", "samplerate=8000", "segment=0.1", "dconv_depth=1"]
    options = [text for argument in arguments for text in ("--set", argument)]
    place = tmp_path / "bundle"
    result = invoke(
        tmp_path / "home", "--untrained", "htdemucs_nf", "--seed", "3", "--layout", "whole", "-o", place,
        "--no-rewrite", "glu", "-n", "noise", *options,
    )  # fmt: skip
    assert result.exit_code == errors.DONE, result.output
    assert "untrained: random weights of seed 3" in result.stdout
    found = inspect(place)
    assert (found.name, found.layout, found.model.trained) == ("noise", "whole", False)
    assert (found.model.config["nfft_list"], found.model.config["channels"]) == ([256], 4)
    assert found.provenance.rewrites == tuple(r for r in FAMILIES["demucs"].rewrites if r != "glu")
    assert [stage.name for stage in found.graphs] == ["core", "fusion"]


# --- what stops it before the work -------------------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the checkpoint would already be too late."""

    def fail(_path: object) -> None:
        raise AssertionError("the checkpoint was read")

    monkeypatch.setattr("mrsep_deploy.export.load.load_model", fail)


@pytest.mark.usefixtures("no_work")
def test_a_second_export_needs_overwrite(home: Path) -> None:
    before = Bundle.open(home / "models" / NAME).digest
    message = complaint(invoke(home, CHECKPOINT))
    assert f"{home / 'models' / NAME} already holds a bundle" in message
    assert message.endswith("--overwrite.")
    assert Bundle.open(home / "models" / NAME).digest == before


@pytest.mark.usefixtures("no_work")
def test_a_name_that_is_taken(home: Path, tmp_path: Path) -> None:
    message = complaint(invoke(home, CHECKPOINT, "-o", tmp_path / "other"), errors.USAGE)
    assert f"the name {NAME} belongs to the bundle at" in message
    assert f"mrsep-deploy models remove {NAME}" in message


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (["-n", "a/b"], errors.USAGE, "'a/b' is not a name"),
        (["-n", "x", "--zip", "x.tar"], errors.USAGE, "does not end in .zip"),
        (["-n", "x", "--zip", CHECKPOINT.parent], errors.USAGE, "does not end in .zip"),
        (["-n", "x", "-o", CHECKPOINT], errors.FAILED, "is a file, expected a place for a folder"),
        (["-n", "x", "-o", CHECKPOINT.parent], errors.FAILED, "is a folder with other things in it"),
    ],
)
def test_an_impossible_place_or_name(home: Path, options: list[str | Path], code: int, expected: str) -> None:
    assert expected in complaint(invoke(home, CHECKPOINT, *options), code)


def test_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    text = tmp_path / "text.th"
    text.write_text("no model")
    for path in (text, tmp_path / "absent.th", tmp_path):
        assert path.name in complaint(invoke(tmp_path / "home", path, "-n", "x"))
    assert not (tmp_path / "home" / "models").exists()


@pytest.fixture
def no_reference_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of the minutes that an export of a real model takes."""

    def fail(*_given: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("mrsep_deploy.export.families.staged.StagedModel.tensors", fail)


@pytest.mark.usefixtures("no_reference_run")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("../x", "model.sources[0] is '../x', expected up to 128 of A-Z a-z 0-9"),
        ("a/b", "model.sources[0] is 'a/b', expected up to 128 of A-Z a-z 0-9"),
        ("a\x1b", r"model.sources[0] is 'a\x1b', expected up to 128 of A-Z a-z 0-9"),
        ("lead vocals", "model.sources[0] is 'lead vocals', expected up to 128 of A-Z a-z 0-9"),
        ("nul", "model.sources names 'nul', which cannot name a file"),
        ("", "sources[0] is '', expected a name"),
    ],
)
def test_a_checkpoint_whose_source_names_no_file(tmp_path: Path, source: str, said: str) -> None:
    """Every source becomes a file of each song: a name that cannot is found before the work, in one line."""
    honest = read_checkpoint(CHECKPOINT, known_classes())
    package = {"klass": honest.klass, "args": (), "kwargs": {**honest.kwargs, "sources": [source]}}
    torch.save({**package, "state": honest.state}, tmp_path / "odd.th")
    message = complaint(invoke(tmp_path / "home", tmp_path / "odd.th"))
    assert said in message
    assert not (tmp_path / "home" / "models").exists()


@pytest.mark.usefixtures("no_reference_run")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sources=Drums,drums"], "'drums' twice in model.sources"),
        (["sources=a,a"], "expected sources with distinct names"),
        (["samplerate=900"], "model.sample_rate is 900, expected a whole number from 1000"),
    ],
)
def test_a_model_that_no_manifest_holds(tmp_path: Path, arguments: list[str], said: str) -> None:
    given = ["nfft_list=256", "channels=4", "depth=2", "samplerate=8000", "segment=0.1", *arguments]
    options = [text for argument in given for text in ("--set", argument)]
    assert said in complaint(invoke(tmp_path, "--untrained", "htdemucs_nf", "-n", "x", *options))


@pytest.mark.parametrize("arguments", [[CHECKPOINT], ["--untrained", "htdemucs"]])
def test_without_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str | Path]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    message = complaint(invoke(tmp_path, *arguments))
    assert message.endswith('needs torch, not installed here. Run pip install "mrsep-deploy[export]"')


def test_without_the_extra_in_a_fresh_process(tmp_path: Path) -> None:
    """Nothing on the way to that line needs torch either."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mrsep_deploy.commands.main import main; main(['export', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(CHECKPOINT)],
        env={**os.environ, "MRSEP_DEPLOY_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == errors.FAILED
    assert done.stderr.endswith('Run pip install "mrsep-deploy[export]"\n')


# --- arguments ---------------------------------------------------------------------------------------------


def test_the_choices_are_those_of_the_families() -> None:
    shown = CliRunner().invoke(main.main, ["export", "--help"]).output.replace("\n", " ")
    for name in (*variants(), *rewrites()):
        assert name in shown


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("nfft_list=2048,4096", "nfft_list", [2048, 4096]),
        ("nfft_list=2048", "nfft_list", [2048]),
        ("sources=vocals", "sources", ["vocals"]),
        ("channels= 24", "channels", 24),
        ("segment=7.8", "segment", 7.8),
        ("segment=.5", "segment", 0.5),
        ("t_hidden_scale=1e1", "t_hidden_scale", 10.0),
        ("rewrite=False", "rewrite", False),
        ("channels_time=none", "channels_time", None),
        ("attention=softmax", "attention", "softmax"),
        ("segment=nan", "segment", "nan"),
    ],
)
def test_constructor_arguments(text: str, name: str, value: object) -> None:
    found = parse_argument(text)
    assert found == (name, value)
    assert type(found[1]) is type(value)


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/955717e8-8726e21a.th", "955717e8-8726e21a"), ("my model (2).th", "my-model-2"), ("x" * 99, "x" * 64),
     (".th", "th"), ("é_v1.safetensors", "v1"), ("htdemucs.v4.th", "htdemucs.v4")],
)  # fmt: skip
def test_default_names(path: str, name: str) -> None:
    assert api.default_name(path) == registry.validate_name(name) == name


def test_a_file_whose_name_gives_none(tmp_path: Path) -> None:
    assert "--name NAME" in complaint(invoke(tmp_path, "日本.th"), errors.USAGE)
