"""No report replaces an input or somebody else's file, and what cannot be written is known at the start."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import runs
from bundles import SOURCES
from click.testing import CliRunner, Result
from runs import NOWHERE, run, song

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.commands import output_files as kinds
from mrsep_deploy.commands.main import main
from mrsep_deploy.commands.output_files import check_output_files
from mrsep_deploy.errors import DONE, FAILED, USAGE, OutputError, UsageError
from mrsep_deploy.measuring.surroundings import machine_info
from mrsep_deploy.pages.blocks import Page
from mrsep_deploy.pages.page import render
from mrsep_deploy.precision.plan import PrecisionPlan, write_plan
from mrsep_deploy.runtime.timeline import timeline_svg
from mrsep_deploy.songs.outcome import Summary

_home, bundle, no_engine = runs._home, runs.bundle, runs.no_engine
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.mark.usefixtures("bundle", "no_engine")
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
@pytest.mark.parametrize("option", ["--summary", "--timeline"])
def test_a_report_of_a_run_replaces_no_song(option: str, more: list[str]) -> None:
    track = song("s.wav")
    before = track.read_bytes()
    os.link(track, "hard.json")
    names = ["s.wav", "./s.wav", "hard.json"]
    if sys.platform != "win32":
        Path("link.json").symlink_to("s.wav")
        names.append("link.json")
    for name in names:
        done = run("s.wav", option, name, *more)
        assert done.code == USAGE
        assert done.err == f"mrsep-deploy: error: {option} {Path(name)} would replace an input of this command. " \
            "Choose another place\n"  # fmt: skip
    assert track.read_bytes() == before
    assert not Path("separated").exists()


@pytest.mark.usefixtures("bundle", "no_engine")
@pytest.mark.parametrize("option", ["--summary", "--timeline"])
def test_a_report_of_a_run_replaces_no_other_file(option: str) -> None:
    song("s.wav")
    Path("thesis.json").write_text('{"precious": true}')
    done = run("s.wav", option, "thesis.json")
    assert done.code == USAGE
    assert f"thesis.json exists and was not written by mrsep-deploy as {option}. Choose another place, or give " \
        "--overwrite" in done.err  # fmt: skip
    assert Path("thesis.json").read_text() == '{"precious": true}'


@pytest.mark.usefixtures("bundle")
def test_reports_of_an_earlier_run_are_replaced() -> None:
    song("s.wav")
    Path("empty.json").touch()
    Path("thesis.json").write_text("precious")
    reports = ("--summary", "summary.json", "--timeline", "timeline.svg")
    for _ in range(2):
        assert run("s.wav", *reports).code == DONE
    assert run("s.wav", "--summary", "empty.json").code == DONE
    assert run("s.wav", "--summary", "thesis.json", "--overwrite").code == DONE
    for name in ("summary.json", "empty.json", "thesis.json"):
        assert json.loads(Path(name).read_text())["done"] == 1


@pytest.mark.usefixtures("bundle", "no_engine")
def test_reports_of_a_run_replace_neither_each_other_nor_stems() -> None:
    song("s.wav")
    both = run("s.wav", "--summary", "report", "--timeline", "./report")
    assert (both.code, "would replace another output: --summary report" in both.err) == (USAGE, True)
    drums = f"separated/tiny/s/{SOURCES[0]}.wav"
    stem = run("s.wav", "--summary", drums)
    assert (stem.code, f"{drums} is to be written, too" in stem.err) == (USAGE, True)


@pytest.mark.usefixtures("bundle", "no_engine")
def test_a_place_that_cannot_be_written_is_known_at_the_start(tmp_path: Path) -> None:
    song("s.wav")
    places = ["nowhere/summary.json", f"{NOWHERE}/summary.json", "x" * 300]
    if sys.platform != "win32":
        os.mkfifo("pipe")
        places.append("pipe")
    for place in places:
        done = run("s.wav", "--summary", place)
        assert (done.code, len(done.err.splitlines())) == (FAILED, 1), done.err
    assert not Path("separated").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"s.wav", "pipe", "home", "bundles"}
    assert run("s.wav", "--dry-run", "--summary", "summary.json").code == DONE
    assert not Path("summary.json").exists()


@pytest.mark.parametrize("option", ["--json", "--csv", "--markdown", "--html"])
def test_bench_is_asked_before_it_measures(bundle: Bundle, option: str) -> None:
    music = song("music.wav")
    before = music.read_bytes()
    given = ("bench", bundle.path, "--engine", "ort", "--against", "none", "--audio", music)
    found = call(*given, option, music)
    assert (found.exit_code, "would replace an input" in found.output) == (USAGE, True), found.output
    Path("other").write_text("# My own notes\n")
    found = call(*given, option, "other")
    assert (found.exit_code, f"was not written by mrsep-deploy as {option}" in found.output) == (USAGE, True)
    assert call(*given, option, "nowhere/file").exit_code == FAILED
    assert (music.read_bytes(), Path("other").read_text()) == (before, "# My own notes\n")


def test_verify_is_asked_before_it_compares(bundle: Bundle) -> None:
    music = song("tracks/one/mixture.wav")
    before = music.read_bytes()
    given = ("verify", bundle.path, "--engine", "ort", "--against", bundle.path)
    for audio in (music, music.parent):
        found = call(*given, "--audio", audio, "--html", music, "--overwrite")
        assert (found.exit_code, "an input of this command" in found.output) == (USAGE, True), found.output
    Path("plan.json").write_text("{}")
    search = ("--plan", "plan.json", "--bisect", "--output", "plan.json")
    found = call(*given, *search)
    assert (found.exit_code, "would replace an input" in found.output) == (USAGE, True), found.output
    assert (music.read_bytes(), Path("plan.json").read_text()) == (before, "{}")


def test_eval_is_asked_before_it_separates(bundle: Bundle) -> None:
    for name in SOURCES:
        song(f"tracks/one/{name}.wav")
    drums = Path(f"tracks/one/{SOURCES[0]}.wav")
    before = drums.read_bytes()
    given = ("eval", "tracks", "-n", bundle.path, "--engine", "ort", "--metric", "mdx")
    found = call(*given, "--html", drums, "--overwrite")
    assert (found.exit_code, "an input of this command" in found.output) == (USAGE, True), found.output
    Path("out").mkdir()
    Path("out/results.json").write_text("{}")
    found = call(*given, "-o", "out")
    assert (found.exit_code, "out/results.json exists and was not" in found.output) == (USAGE, True), (
        found.output
    )
    assert (drums.read_bytes(), Path("out/results.json").read_text()) == (before, "{}")
    assert not Path("out/tracks").exists()
    for options in (("--overwrite",), ()):
        found = call(*given, "-o", "out", "--html", "tracks/report.html", *options)
        assert found.exit_code == DONE, found.output
    assert sorted(json.loads(Path("out/results.json").read_text()))


def test_export_replaces_no_checkpoint(tmp_path: Path) -> None:
    Path("model.zip").write_bytes(b"a checkpoint, which is an archive, too")
    found = call("export", "model.zip", "--zip", "model.zip", "--overwrite")
    assert (found.exit_code, "would replace an input" in found.output) == (USAGE, True), found.output
    assert Path("model.zip").read_bytes().startswith(b"a checkpoint")


def test_what_an_earlier_report_is() -> None:
    """Each kind knows what this version writes, and no other kind; bench's files are in its own tests."""
    marks = {
        name: mark for name, mark in vars(kinds).items() if isinstance(mark, re.Pattern) and name != "TIMES"
    }
    write_plan(PrecisionPlan("float16", ()), "plan.json")
    made = {
        "SUMMARY": json.dumps(Summary((), 0.0).as_json(), indent=2),
        "TIMELINE": timeline_svg([]),
        "PLAN": Path("plan.json").read_text(),
        "PAGE": render(Page("A title", "", [], [], [], machine_info(), [], "")),
    }
    for name, text in made.items():
        matching = {kind for kind, mark in marks.items() if mark.match(text.encode())}
        assert matching == {name}


def test_settings_are_an_input(bundle: Bundle) -> None:
    song("s.wav")
    Path("settings.toml").write_text("[run]\nflac = true\n")
    found = call("--config", "settings.toml", "run", "s.wav", "--summary", "settings.toml", "--overwrite")
    assert (found.exit_code, "would replace an input" in found.output) == (USAGE, True), found.output


@posix
def test_times_are_asked_for_before_they_are_measured(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        check_output_files([("--times", tmp_path / "no/times.json", kinds.TIMES)], [], None)
    (tmp_path / "times.json").write_text("Jan 3")
    with pytest.raises(
        UsageError, match=r"was not written by mrsep-deploy as --times\. Choose another place$"
    ):
        check_output_files([("--times", tmp_path / "times.json", kinds.TIMES)], [], None)
