"""What ``--resume`` goes by: every option either decides what stems are, and is in the digest, or does not."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import click
import pytest

from mrsep_deploy.bundle import registry
from mrsep_deploy.commands.run import _settings, run
from mrsep_deploy.commands.run_options import RunOptions
from mrsep_deploy.precision.plan import PrecisionPlan, default_plan, write_plan
from mrsep_deploy.songs.journal import settings_digest
from mrsep_deploy.songs.naming import Naming
from mrsep_deploy.songs.writing import WriteOptions

SOURCES = ("drums", "bass", "other", "vocals")
DECIDE: dict[str, tuple[list[str], list[str]]] = {
    "filename": ([], ["--filename", "{track}-{stem}.{ext}"]),
    "shifts": ([], ["--shifts", "2"]),
    "seed": (["--shifts", "2"], ["--seed", "1"]),
    "overlap": ([], ["--overlap", "0.5"]),
    "segment": ([], ["--segment", "2"]),
    "precision": ([], ["--precision", "fp16"]),
    "plan": (["--precision", "mixed"], ["--plan", "plan.json"]),
    "gate": (["--precision", "fp16"], ["--gate", "off"]),
    "stems": ([], ["--stems", "drums"]),
    "two_stems": ([], ["--two-stems", "drums"]),
    "other_method": (["--two-stems", "drums"], ["--other-method", "minus"]),
    "int24": ([], ["--int24"]),
    "float32": ([], ["--float32"]),
    "flac": ([], ["--flac"]),
    "mp3": ([], ["--mp3"]),
    "ogg": ([], ["--ogg"]),
    "raw": ([], ["--raw"]),
    "mp3_bitrate": (["--mp3"], ["--mp3-bitrate", "192"]),
    "ogg_quality": (["--ogg"], ["--ogg-quality", "3"]),
    "clip_mode": ([], ["--clip-mode", "clamp"]),
    "sample_rate": ([], ["--sample-rate", "48000"]),
    "tags": ([], ["--no-tags"]),
}
"""Options that decide what is in the files: what each needs beside it, and itself."""
DO_NOT = {
    "tracks": ["b.wav"],  # a line of the journal names its song
    "recursive": ["--recursive"],
    "allow_damaged": ["--allow-damaged"],  # a song that is whole stays the same
    "model": ["-n", "other"],  # the bundle's digest stands for it
    "out": ["-o", "elsewhere"],  # the journal lies there
    "engine": ["--engine", "ort"],  # engines agree within their limits
    "device": ["-d", "cpu"],
    "allow": ["--allow", "commercial"],  # it refuses a model or changes nothing
    "mode": ["--mode", "concurrent"],
    "lanes": ["--lanes", "2"],
    "batch": ["--batch", "2"],
    "no_split": ["--no-split"],
    "jobs": ["-j", "3"],
    "threads": ["--threads", "1"],
    "stdin_raw": ["--stdin-raw", "44100:2:f32le"],  # what comes through stdin is in no journal
    "resume": ["--resume"],
    "dry_run": ["--dry-run"],
    "json": ["--json"],
    "summary": ["--summary", "summary.json"],
    "quiet": ["--quiet"],
    "checkpoint": ["--checkpoint", "model.th"],  # it has to be the one that the bundle was made from
    "timeline": ["--timeline", "timeline.svg"],
    "overwrite": ["--overwrite"],
}


def digest(arguments: list[str], model: str = "1") -> str:
    """Of a run with these arguments; the model has four sources."""
    context: click.Context = run.make_context("run", ["a.wav", *arguments])
    with context:
        options = RunOptions(**context.params)
        encoding = options.encoding()
        naming = Naming(Path(options.out), "model", encoding.suffix.lstrip("."), options.filename)
        writing = WriteOptions(
            naming,
            options.outputs(SOURCES),
            encoding,
            options.clip_mode,
            options.sample_rate,
            options.tags,
        )
        return settings_digest(_settings(options, model, writing))


@pytest.fixture(autouse=True)
def _plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_plan(default_plan("float16", ()), "plan.json")


def test_every_option_is_one_or_the_other() -> None:
    names = {field.name for field in fields(RunOptions)}
    assert names <= {*DECIDE, *DO_NOT}, "say of a new option whether it decides what stems are"
    assert not {*DECIDE} & {*DO_NOT}
    assert {*DECIDE} <= names


@pytest.mark.parametrize("name", DECIDE)
def test_options_that_decide_are_in_the_digest(name: str) -> None:
    needed, given = DECIDE[name]
    assert digest([*needed, *given]) != digest(needed)
    assert digest([*needed, *given]) == digest([*needed, *given])


@pytest.mark.parametrize("name", sorted({field.name for field in fields(RunOptions)} & {*DO_NOT}))
def test_options_that_do_not_decide_are_not(name: str) -> None:
    assert digest(DO_NOT[name]) == digest([])


def test_another_model_is_another_digest() -> None:
    assert digest([], "1") != digest([], "2")


def test_a_plan_counts_by_what_it_says() -> None:
    arguments = ["--precision", "mixed", "--plan"]
    before = digest([*arguments, "plan.json"])
    Path("copy.json").write_text(json.dumps(json.loads(Path("plan.json").read_text())))
    assert digest([*arguments, "copy.json"]) == before
    write_plan(PrecisionPlan("float16", default_plan("float16", ()).rules, {"encoder": ("*",)}), "plan.json")
    assert digest([*arguments, "plan.json"]) != before


def test_the_default_model_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name and why it is this one come from one reading of the registry, which another run may replace."""
    from mrsep_deploy.commands.run import _Model

    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    readings, load = [], registry.load

    def counted() -> object:
        readings.append(1)
        return load()

    monkeypatch.setattr(registry, "load", counted)
    with run.make_context("run", ["a.wav", "--dry-run"]) as context:
        model = _Model.open(RunOptions(**context.params))
    assert (len(readings), model.why) == (1, "comes with mrsep-deploy")
