"""Every example on docs/running.md, docs/cpu.md and docs/benchmarking.md runs, and every option on them exists."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
from goldens import Export

from mrsep_deploy.bundle import registry
from mrsep_deploy.commands import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "running.md").read_text()
CPU = (ROOT / "docs" / "cpu.md").read_text()
BENCHMARKING = (ROOT / "docs" / "benchmarking.md").read_text()
RATE = 44100


def examples(page: str = PAGE) -> list[str]:
    """The indented lines that call the program, without their comments."""
    lines = [line.strip() for line in page.splitlines() if line.startswith("    ")]
    return [_without_comment(line) for line in lines]


def long_examples(page: str) -> list[str]:
    """Those between fences: they take minutes, or music that is not there."""
    return [
        _without_comment(line)
        for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
    ]


def _without_comment(line: str) -> str:
    return re.sub(r"\s+#.*", "", line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, exports: Export) -> Path:
    """A song, an album, settings, an exported model; a folder of programs with this one in it."""
    place = tmp_path_factory.mktemp("examples")
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (RATE // 2, 2))
    (place / "album" / "live").mkdir(parents=True)
    for name in ("song.wav", "album/01.flac", "album/02.wav", "album/live/03.flac"):
        soundfile.write(place / name, noise, RATE)
    (place / "cut.wav").write_bytes((place / "song.wav").read_bytes()[:50_000])
    # One example writes it and the next one reads it, which another of the tests' processes may run.
    (place / "drums.f32").write_bytes(noise.astype("<f4").tobytes())
    for stem in ("drums", "bass", "other", "vocals"):
        (place / "tracks" / "one").mkdir(parents=True, exist_ok=True)
        soundfile.write(place / "tracks" / "one" / f"{stem}.wav", np.tile(noise, (3, 1)) / 4, RATE)
    bag, settings = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (place / "bag.toml").write_text(bag)
    (place / "settings.toml").write_text(settings)
    programs = place / "programs"
    programs.mkdir()
    (programs / "mrsep-deploy").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mrsep_deploy "$@"\n')
    (programs / "mrsep-deploy").chmod(0o755)
    registry_home = place / "home"
    before = os.environ["MRSEP_DEPLOY_HOME"]
    os.environ["MRSEP_DEPLOY_HOME"] = str(registry_home)
    try:
        for name in ("first", "second", "htdemucs"):
            registry.register(exports("htdemucs"), name)
    finally:
        os.environ["MRSEP_DEPLOY_HOME"] = before
    return place


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="the examples are a shell's")
@pytest.mark.parametrize("example", [*examples(), *examples(CPU)])
def test_the_examples_run(folder: Path, example: str) -> None:
    """One after the other, as the page shows them: some read what one before has written."""
    environment = {
        **os.environ,
        "PATH": f"{folder / 'programs'}{os.pathsep}{os.environ['PATH']}",
        "MRSEP_DEPLOY_HOME": str(folder / "home"),
    }
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    command = ["bash", "-e", "-o", "pipefail", "-c", example]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    changed = [path for path in after if after[path] != before.get(path)]
    assert bool(changed) != ("--dry-run" in example)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="the examples are a shell's")
@pytest.mark.parametrize("example", examples(BENCHMARKING))
def test_the_examples_of_measuring_run(folder: Path, example: str) -> None:
    environment = {
        **os.environ,
        "PATH": f"{folder / 'programs'}{os.pathsep}{os.environ['PATH']}",
        "MRSEP_DEPLOY_HOME": str(folder / "home"),
    }
    command = ["bash", "-e", "-o", "pipefail", "-c", example]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    for page in re.findall(r"--html (\S+)", example):
        assert "<!doctype html>" in (folder / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("example", [*long_examples(BENCHMARKING), *long_examples(CPU)])
def test_the_long_examples_are_understood(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "song.wav").touch()
    program, name, *arguments = shlex.split(example)
    assert program == "mrsep-deploy"
    top = click.Context(main.main)
    command = main.main.get_command(top, name)
    assert command is not None
    command.make_context(name, arguments, parent=top)


def test_every_option_on_the_page_of_measuring_exists() -> None:
    ours = set().union(*(options(name) for name in ("bench", "complexity", "eval", "verify", "export")))
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", BENCHMARKING)):
        assert option in ours, option


def test_every_option_on_the_page_of_cpus_exists() -> None:
    ours = set().union(*(options(name) for name in ("run", "build", "bench", "export")))
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", CPU)):
        assert option in ours, option


def test_there_are_examples() -> None:
    found = examples()
    assert len(found) > 25
    assert all("mrsep-deploy" in line for line in found)


def options(*command: str) -> set[str]:
    """Of a command, or of one in a group."""
    found: click.Command | None = main.main
    for name in command:
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), name)
    assert found is not None
    return {text for parameter in found.params for text in (*parameter.opts, *parameter.secondary_opts)}


def test_every_option_on_the_page_exists() -> None:
    ours = options("run") | options("models", "use") | options("models", "list") | {"--config", "--debug"}
    theirs = {"--list-models", "--verbose", "--mp3-preset", "--sig", "--repo"}
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", PAGE)):
        assert option in ours | theirs, option


def test_every_option_of_demucs_is_on_the_page() -> None:
    separate = pytest.importorskip("demucs.separate")
    for action in separate.get_parser()._actions:
        for option in action.option_strings:
            if option.startswith("--") and option != "--help":
                assert f"`{option}" in PAGE or f"{option}`" in PAGE or f"{option} " in PAGE, option
