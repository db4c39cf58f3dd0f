"""What a shell offers while a command line is typed: files where files go, folders where folders go, models by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from bundles import tiny_bundle
from click.shell_completion import ShellComplete
from test_cli import HEAVY

from mrsep_deploy.bundle import registry, shipped
from mrsep_deploy.bundle.published import published
from mrsep_deploy.commands import main
from mrsep_deploy.files import paths

VARIABLE = "_MRSEP_DEPLOY_COMPLETE"
FILE, FOLDER, NAME, MODEL = "file", "folder", "name", "name or file"
GATE = "off or a number"
PUBLISHED = "name of a published model"
NOTHING = "nothing"

OFFERED = {
    "export name": NOTHING,
    "export output": FOLDER,
    "export arguments": NOTHING,
    "export licence": NOTHING,
    "export source": NOTHING,
    "fetch published": PUBLISHED,
    "fetch name": NOTHING,
    "fetch mirror": FOLDER,
    "run tracks": FILE,
    "run model": MODEL,
    "build device": NOTHING,
    "doctor device": NOTHING,
    "run device": NOTHING,
    "run out": FOLDER,
    "run filename": NOTHING,
    "run gate": GATE,
    "run stems": NOTHING,
    "run two_stems": NOTHING,
    "run sample_rate": NOTHING,
    "run stdin_raw": NOTHING,
    "models show name": MODEL,
    "models use name": NAME,
    "models remove names": NAME,
    "inspect model": MODEL,
    "complexity model": MODEL,
    "complexity nfft": NOTHING,
    "complexity arguments": NOTHING,
    "verify model": MODEL,
    "verify gate": GATE,
    "bench models": MODEL,
    "bench engines": NOTHING,
    "bench precisions": NOTHING,
    "bench modes": NOTHING,
    "bench lanes": NOTHING,
    "bench batches": NOTHING,
    "bench against": NOTHING,
    "bench lengths": NOTHING,
    "eval dataset": FOLDER,
    "eval model": MODEL,
    "eval out": FOLDER,
    "eval engines": NOTHING,
    "build model": MODEL,
    "build targets": NOTHING,
    "build gate": GATE,
}
"""Every argument and option that takes text, and those whose type would let files be offered in a folder's place.

Flags, numbers and choices need no decision, nor do paths, which offer what their type says.
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    registry.register(tiny_bundle(paths.models_dir(), "mine"))
    return tmp_path / "home"


def parameters() -> Iterator[tuple[tuple[str, ...], click.Parameter]]:
    """Every parameter of every command that takes text, with the command's path."""
    waiting: list[tuple[tuple[str, ...], click.Command]] = [((), main.main)]
    while waiting:
        path, command = waiting.pop()
        for parameter in command.params:
            simple = isinstance(
                parameter.type, (click.Choice, click.types.FloatParamType, click.types.IntParamType)
            )
            if not simple and not (isinstance(parameter, click.Option) and parameter.is_flag):
                yield path, parameter
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                waiting.append(((*path, name), inner))


def label(path: tuple[str, ...], parameter: click.Parameter) -> str:
    return " ".join((*path, str(parameter.name)))


def offered(arguments: list[str], incomplete: str) -> list[tuple[str, str]]:
    """Type and value of everything that click offers."""
    completer = ShellComplete(main.main, {}, main.PROGRAM, VARIABLE)
    return [(item.type, item.value) for item in completer.get_completions(arguments, incomplete)]


def expectation(what: str, parameter: click.Parameter) -> str:
    if what in OFFERED or not isinstance(parameter.type, click.Path):
        return OFFERED[what]
    return FILE if parameter.type.file_okay else FOLDER


def test_every_parameter_is_thought_of() -> None:
    found = {label(path, parameter): parameter for path, parameter in parameters()}
    assert set(OFFERED) <= set(found)
    assert set(found) - set(OFFERED) == {
        what
        for what, parameter in found.items()
        if isinstance(parameter.type, click.Path) and what not in OFFERED
    }


@pytest.mark.parametrize("what", [label(*found) for found in parameters()])
@pytest.mark.usefixtures("home")
def test_what_is_offered(what: str) -> None:
    ((path, parameter),) = [found for found in parameters() if label(*found) == what]
    kind = expectation(what, parameter)
    before = [*path, *([parameter.opts[-1]] if isinstance(parameter, click.Option) else [])]
    names = [("plain", name) for name in ("mine", shipped.NAME)]
    removable = [("plain", "mine")]
    expected = {
        FILE: [("file", "")],
        FOLDER: [("dir", "")],
        NAME: removable if what == "models remove names" else names,
        # The kind comes first: bash takes what follows, and files where nothing does.
        MODEL: [("file", ""), *names],
        GATE: [("plain", "off")],
        PUBLISHED: [("plain", name) for name in published().models],
        NOTHING: [],
    }
    assert offered(before, "") == expected[kind]
    started = {FILE: [("file", "mi")], FOLDER: [("dir", "mi")], NAME: removable, GATE: [], NOTHING: []}
    started[PUBLISHED] = []
    started[MODEL] = [("file", "mi"), ("plain", "mine")]
    assert offered(before, "mi") == started[kind]


def test_the_table_of_engines_imports_none() -> None:
    """NumPy alone would keep a key waiting."""
    code = "import sys, mrsep_deploy.engines; print(*(m for m in sys.modules if m.startswith(('mrsep', 'numpy'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == ["mrsep_deploy", "mrsep_deploy.engines", "mrsep_deploy.errors"]


def test_all_songs_and_all_models_are_completed_not_the_first_alone(home: Path) -> None:
    assert offered(["run", "one.wav", "-q"], "tw") == [("file", "tw")]
    assert offered(["models", "remove", "other"], "m") == [("plain", "mine")]
    assert offered(["bench", "mine"], "mrsep") == [("file", "mrsep"), ("plain", shipped.NAME)]


def test_what_a_gate_begins_with() -> None:
    assert offered(["run", "--gate"], "o") == [("plain", "off")]
    assert offered(["run", "--gate"], "7") == []


def test_names_where_the_registry_is_damaged(home: Path) -> None:
    paths.registry_file().write_text("{")
    assert offered(["run", "-n"], "") == [("file", "")]
    assert offered(["models", "use"], "") == []


@pytest.mark.parametrize("line", ["run so", "run -o ", "run -n mi", "verify ", "eval -n ", "models show m"])
def test_the_shell_is_answered_without_anything_heavy(home: Path, line: str) -> None:
    words = f"{main.PROGRAM} {line}"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mrsep_deploy"],
        env={
            **os.environ,
            VARIABLE: "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    kind = "dir" if line.startswith("run -o") else "file"
    assert done.stdout.splitlines()[0] == f"{kind},{words.split(' ')[-1]}"
    if "so" not in line and "-o" not in line:
        assert "plain,mine" in done.stdout.splitlines()
    imported = {row.rsplit("|", 1)[-1].strip().split(".")[0] for row in done.stderr.splitlines()}
    assert not imported & (HEAVY - {"filelock", "platformdirs"})


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_itself_completes(home: Path, tmp_path: Path) -> None:
    """As far as bash lets a script do what the tab key does: its function fills COMPREPLY."""
    (tmp_path / "song.wav").touch()
    program = tmp_path / "mrsep-deploy"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mrsep_deploy "$@"\n')
    program.chmod(0o755)
    script = """
        compopt() { printf "compopt %s %s\\n" "$1" "$2"; }
        eval "$(mrsep-deploy completion bash)"
        complete -p mrsep-deploy
        ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _mrsep_deploy_completion mrsep-deploy
                echo "${COMPREPLY[*]}"; }
        ask mrsep-deploy run so
        ask mrsep-deploy run -o ""
        ask mrsep-deploy run -n mi
    """
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "too old" in done.stderr or "not supported" in done.stderr:
        pytest.skip("this bash is too old")
    _, *answers = done.stdout.splitlines()
    assert answers == ["compopt -o default", "", "compopt -o dirnames", "", "compopt -o default", "mine"]
