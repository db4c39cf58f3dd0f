"""The command line: instant help, an example for every command, one line and an exit code for every error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from bundles import tiny_bundle
from click.testing import CliRunner

from mrsep_deploy import __version__, errors
from mrsep_deploy.bundle import registry, shipped
from mrsep_deploy.commands import main
from mrsep_deploy.files import paths

HEAVY = {"numpy", "torch", "rich", "onnxruntime", "onnx", "scipy", "platformdirs", "filelock", "yaml"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "mrsep_deploy", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def commands() -> Iterator[tuple[str, ...]]:
    """Every command's path, groups included."""
    context = click.Context(main.main)
    for name in main.COMMANDS:
        yield (name,)
        command = main.main.get_command(context, name)
        if isinstance(command, click.Group):
            yield from ((name, inner) for inner in command.commands)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


# --- help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_help_imports_nothing_heavy(option: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mrsep_deploy", option],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & HEAVY
    assert done.stdout.startswith(
        "Usage: mrsep-deploy [OPTIONS] COMMAND" if "h" in option else f"mrsep-deploy {__version__}\n"
    )


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    for option in ("--help", "-h"):
        result = CliRunner().invoke(main.main, [*path, option], prog_name=main.PROGRAM)
        assert result.exit_code == errors.DONE
        assert "Example" in result.output
        assert f"  mrsep-deploy {' '.join(path)}" in result.output.split("Example")[1]


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_the_short_help_is_the_command_s_first_sentence(name: str) -> None:
    command = main.main.get_command(click.Context(main.main), name)
    assert command is not None
    assert command.name == name
    assert str(command.help).splitlines()[0] == main.COMMANDS[name]
    assert f"{name} " in CliRunner().invoke(main.main, ["--help"]).output


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["--nothing"],
        ["export", "--nothing"],
        ["export"],
        ["export", "a.th", "--untrained", "htdemucs"],
        ["export", "a.th", "--seed", "1"],
        ["export", "--untrained", "resnet"],
        ["export", "--untrained", "htdemucs", "--set", "channels"],
        ["export", "--untrained", "htdemucs", "--set", "seed=4"],
        ["run", "a.wav", "--batch", "0"],
        ["export", "a.th", "--no-rewrite", "nothing"],
        ["models", "nothing"],
        ["models", "remove"],
        ["run"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = CliRunner().invoke(main.main, arguments, prog_name=main.PROGRAM)
    assert result.exit_code == errors.USAGE
    assert "Error: " in result.stderr
    assert "Traceback" not in result.output


# --- errors ------------------------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes ``mrsep-deploy models`` raise what it is given."""

    def fail_with(error: BaseException) -> None:
        def fail() -> None:
            raise error

        monkeypatch.setattr("mrsep_deploy.bundle.registry.list_models", fail)

    return fail_with


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.UsageError("no", "Do this."), 2, "mrsep-deploy: error: no. Do this."),
        (errors.BundleError("bad\nbundle"), 1, "mrsep-deploy: error: bad bundle"),
        (
            errors.EngineUnavailableError("none", "pip install x"),
            1,
            "mrsep-deploy: error: none. pip install x",
        ),
        (ValueError("first\nsecond"), 1, "mrsep-deploy: error: ValueError: first. This is a bug; "),
        (MemoryError(), 1, "mrsep-deploy: error: MemoryError: no message."),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    failing: Callable[[BaseException], None], error: BaseException, code: int, line: str
) -> None:
    failing(error)
    result = CliRunner().invoke(main.main, ["models"], prog_name=main.PROGRAM)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "environment"), [(["--debug", "models"], {}), (["models"], {main.DEBUG_VARIABLE: "1"})]
)
def test_debug_shows_the_traceback(
    failing: Callable[[BaseException], None], arguments: list[str], environment: dict[str, str]
) -> None:
    failing(ValueError("first"))
    result = CliRunner(env=environment).invoke(main.main, arguments, prog_name=main.PROGRAM)
    assert result.exit_code == errors.FAILED
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("mrsep-deploy: error: ValueError: first")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupting_the_process() -> None:
    code = (
        "import os, signal; from mrsep_deploy.bundle import registry\n"
        "from mrsep_deploy.commands import main\n"
        f"registry.list_models = lambda: os.kill(os.getpid(), {int(signal.SIGINT)})\n"
        "main.main(['models'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (main.INTERRUPTED, "interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
@pytest.mark.parametrize("arguments", ["--help", "models", "models --json", "inspect", "inspect --json"])
def test_a_closed_pipe_is_no_error(home: Path, arguments: str) -> None:
    registry.register(tiny_bundle(paths.models_dir()))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mrsep_deploy", *arguments.split()]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""


def test_a_terminal_without_unicode(home: Path) -> None:
    registry.register(tiny_bundle(paths.models_dir()))
    done = run("inspect", PYTHONIOENCODING="ascii")
    assert done.returncode == errors.DONE
    assert "#" * 10 in done.stdout


# --- models and inspect ------------------------------------------------------------------------------------


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main.main, list(arguments), prog_name=main.PROGRAM)
    return result.exit_code, result.stdout, result.stderr


def test_models_before_any_export(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = invoke("models")
    assert (code, err) == (errors.DONE, "")
    (line,) = (line for line in out.splitlines() if shipped.NAME in line)
    assert line.split()[0] == "*"
    assert line.split()[-3:] == ["shipped", "MIT", "ok"]
    (listed,) = json.loads(invoke("models", "--json")[1])
    assert listed["shipped"]
    assert listed["trained"]
    assert shipped.NAME in invoke("inspect")[1]


def test_models_lists_what_there_is(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # else words are put below each other
    registry.register(tiny_bundle(paths.models_dir(), "good"))
    registry.register(tiny_bundle(tmp_path, "broken"))
    registry.register(tiny_bundle(tmp_path, "gone"))
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    code, out, _ = invoke("models")
    lines = {name: line for line in out.splitlines() for name in ("good", "broken", "gone") if name in line}
    assert code == errors.DONE
    assert lines["good"].split()[1:4] == ["HTDemucs", "drums,", "other"]
    assert lines["good"].split()[-1] == "untrained"
    assert lines["broken"].split()[-1] == "damaged"
    assert lines["gone"].split()[0] == "*"
    assert lines["gone"].split()[-1] == "missing"


@pytest.mark.parametrize("columns", ["80", "120"])
def test_models_fits_the_terminal(home: Path, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    registry.register(tiny_bundle(paths.models_dir(), "a-name-of-some-length"))
    monkeypatch.setenv("COLUMNS", columns)
    for command in ("models", "inspect"):
        out = invoke(command)[1]
        assert max(map(len, out.splitlines())) <= int(columns)
        assert "…" not in out


def test_models_show_is_inspect(home: Path) -> None:
    registry.register(tiny_bundle(paths.models_dir(), "mine"))
    assert invoke("models", "show", "mine") == invoke("inspect", "mine") == invoke("inspect")
    assert invoke("models", "show", "mine", "--json") == invoke("inspect", "mine", "--json")


def test_models_remove(home: Path, tmp_path: Path) -> None:
    managed, other = tiny_bundle(paths.models_dir(), "mine"), tiny_bundle(tmp_path, "other")
    registry.register(managed)
    registry.register(other)
    code, out, err = invoke("models", "remove", "mine", "nothing", "other")
    assert code == errors.PARTIAL
    assert out.splitlines() == [f"deleted {managed.path}", f"forgot other; {other.path} stays as it is"]
    assert err.startswith("mrsep-deploy: error: no model 'nothing' yet")
    assert other.path.exists()
    assert not managed.path.exists()
    assert invoke("models", "remove", "mine")[0] == errors.USAGE
    assert invoke("models", "remove", "mine", "other")[0] == errors.FAILED


def test_models_use(home: Path) -> None:
    for name in ("first", "second"):
        registry.register(tiny_bundle(paths.models_dir(), name))
    said = "run takes it where no model is named, whatever is exported later"
    assert invoke("models", "use", "first") == (errors.DONE, f"the default is first: {said}\n", "")
    registry.register(tiny_bundle(paths.models_dir(), "third"))
    assert registry.default_model().name == "first"
    assert "* taken where no model is named: the default, chosen with models use" in invoke("models")[1]
    found = {model["name"]: model["default_reason"] for model in json.loads(invoke("models", "--json")[1])}
    assert found == {"first": "chosen", "second": None, "third": None, shipped.NAME: None}
    assert invoke("models", "use", "--last") == (errors.DONE, "the default is third (exported last)\n", "")
    assert "* taken where no model is named: exported last" in invoke("models")[1]


def test_models_use_the_shipped_one(home: Path) -> None:
    assert "* taken where no model is named: comes with mrsep-deploy" in invoke("models")[1]
    registry.register(tiny_bundle(paths.models_dir(), "mine"))
    assert invoke("models", "use", shipped.NAME)[0] == errors.DONE
    assert registry.default_model().reason == "chosen"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "error: no model 'nothing' yet (here: mrsep-small)"),
        ([], "Give the NAME of a model, or --last."),
        (["mrsep-small", "--last"], "Give the NAME of a model, or --last."),
    ],
)
def test_models_use_of_nothing(home: Path, arguments: list[str], message: str) -> None:
    code, out, err = invoke("models", "use", *arguments)
    assert (code, out) == (errors.USAGE, "")
    assert message in err


def test_removing_the_chosen_model_says_what_the_default_is_now(home: Path) -> None:
    for name in ("first", "second", "third"):
        registry.register(tiny_bundle(paths.models_dir(), name))
    invoke("models", "use", "first")
    assert "default" not in invoke("models", "remove", "third")[1]
    code, out, _ = invoke("models", "remove", "first")
    assert (code, out.splitlines()[1]) == (
        errors.DONE,
        "first was the default; now it is second (exported last)",
    )
    invoke("models", "use", "second")
    assert invoke("models", "remove", "second")[1].endswith(
        f"now it is {shipped.NAME} (comes with mrsep-deploy)\n"
    )


@pytest.mark.parametrize("path", ["nothing", "nothing.th", "./nothing", "nothing.zip"])
def test_inspecting_nothing(home: Path, path: str) -> None:
    code, out, err = invoke("inspect", path)
    assert code in (errors.FAILED, errors.USAGE)
    assert out == ""
    assert err.startswith("mrsep-deploy: error: ")
    assert err.count("\n") == 1
