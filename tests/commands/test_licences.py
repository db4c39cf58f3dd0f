"""The licence of a model on its way: stated at the export, shown by every command, written into stems."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import runs
import small_package
import soundfile
from bundles import tiny_files, tiny_manifest
from click.testing import CliRunner
from goldens import checkpoint
from runs import run, song

from mrsep_deploy.bundle import Bundle, registry, shipped, write_bundle
from mrsep_deploy.bundle.licence import Licence, stated
from mrsep_deploy.commands.main import main
from mrsep_deploy.errors import DONE, FAILED, USAGE

_home = runs._home
WORDS = "The weights are for research only"
PAGE = "https://example.org/weights"


def registered(folder: Path, name: str, licence: Licence) -> Bundle:
    manifest = replace(tiny_manifest(name), licence=licence)
    bundle = write_bundle(folder / name, manifest, tiny_files(manifest), overwrite=False)
    registry.register(bundle)
    return bundle


@pytest.fixture
def free(tmp_path: Path) -> Bundle:
    return registered(tmp_path / "bundles", "free", stated("MIT", "LICENSE"))


@pytest.fixture
def research(tmp_path: Path) -> Bundle:
    return registered(tmp_path / "bundles", "research", stated(WORDS, PAGE))


def invoke(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, arguments, prog_name="mrsep-deploy")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_the_first_line_of_a_run_states_it(free: Bundle, research: Bundle) -> None:
    song("a.wav")
    first = run("a.wav", "-n", "research").err.splitlines()[0]
    assert first.startswith(f'research (drums, other; licence "{WORDS}") on ')
    assert "licence MIT)" in run("a.wav", "-n", "free", "-o", "other").err.splitlines()[0]


def test_reports_of_a_run_hold_it(research: Bundle) -> None:
    song("a.wav")
    told = run("a.wav", "--json", "--summary", "summary.json").out.splitlines()
    expected = {"terms": WORDS, "source": PAGE, "commercial": False}
    assert json.loads(told[0])["licence"] == expected
    summary = json.loads(Path("summary.json").read_text())
    assert (summary["model"], summary["licence"]) == ("research", expected)
    assert run("a.wav", "--summary", "summary.json").code == DONE, "an earlier summary is replaced"


@pytest.mark.parametrize("options", [["--dry-run"], ["--json"], []])
def test_commercial_use_is_refused_before_anything_is_done(
    research: Bundle, no_engine: None, options: list[str]
) -> None:
    song("a.wav")
    done = run("a.wav", "--allow", "commercial", *options)
    assert done.code == USAGE
    assert done.err.startswith(
        f'mrsep-deploy: error: the model research is not known to allow commercial use (licence "{WORDS}"). '
    )
    assert len(done.err.splitlines()) == 1
    assert done.out == ""
    assert not Path("separated").exists()


no_engine = runs.no_engine


def test_commercial_use_where_it_is_allowed(free: Bundle) -> None:
    song("a.wav")
    assert run("a.wav", "-n", "free", "--allow", "commercial").code == DONE
    assert run("missing.wav", "-n", shipped.NAME, "--allow", "commercial").code == FAILED, (
        "for another reason"
    )


def test_a_bag_allows_what_all_its_models_allow(free: Bundle, research: Bundle) -> None:
    song("a.wav")
    Path("both.toml").write_text('models = ["free", "research"]\n')
    Path("alone.toml").write_text('models = ["free"]\n')
    assert run("a.wav", "-n", "both.toml", "--allow", "commercial").code == USAGE
    assert run("a.wav", "-n", "alone.toml", "--allow", "commercial").code == DONE
    assert f'licence "MIT and {WORDS}"' in run("a.wav", "-n", "both.toml").err.splitlines()[0]


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_stems_say_what_made_them(research: Bundle, kind: str) -> None:
    mutagen = pytest.importorskip("mutagen")
    with soundfile.SoundFile("a.flac", "w", 44100, 2) as file:
        file.title, file.software = "Ode", "another program"
        file.write([[0.1, 0.1]] * 44100)
    options = [] if kind == "wav" else [f"--{kind}"]
    assert run("a.flac", *options).code == DONE
    stem = Path(f"separated/research/a/drums.{kind}")
    made_by = f'mrsep-deploy 0.1.0, model research, licence "{WORDS}"'
    if kind == "mp3":
        assert mutagen.File(stem).tags["TSSE"].text == [made_by]
    elif kind == "wav":
        assert (
            f"ISFT{(len(made_by) + 1).to_bytes(4, 'little').decode()}{made_by}\0".encode()
            in stem.read_bytes()
        )
    else:
        (found,) = mutagen.File(stem).tags["software"]
        assert found.startswith(made_by), "libsndfile adds its own name"
    assert run("a.flac", *options, "--no-tags", "-o", "bare").code == DONE
    assert b"licence" not in Path(f"bare/research/a/drums.{kind}").read_bytes()


def test_models_and_inspect_show_it(free: Bundle, research: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # else words are put below each other
    listed = invoke("models")[1].splitlines()
    for name, terms in (("research", "author's words"), ("free", "MIT"), (shipped.NAME, "MIT")):
        assert any(f" {name} " in f" {line} " and f" {terms} " in line for line in listed), name
    found = {each["name"]: each["licence"] for each in json.loads(invoke("models", "--json")[1])}
    assert found["research"] == {"terms": WORDS, "source": PAGE, "commercial": False}
    assert f"{WORDS}; commercial use not allowed ({PAGE})" in invoke("inspect", "research")[1]
    assert json.loads(invoke("inspect", "free", "--json")[1])["licence"]["terms"] == "MIT"


def test_export_states_it(tmp_path: Path) -> None:
    package = str(small_package.write(tmp_path / "small.th"))
    code, _, err = invoke("export", package, "--name", "mine", "-q", "--licence", "mit", "--source", PAGE)
    assert (code, err) == (DONE, "")
    assert Bundle.open(registry.resolve("mine")).manifest.licence == Licence("MIT", PAGE, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", PAGE], "need --licence TEXT"),
        (["--commercial"], "need --licence TEXT"),
        (["--licence", "CC-BY-NC-4.0", "--commercial"], "does not allow commercial use"),
        (["--license", "a\nb"], "expected text of up to 500 characters in one line"),
    ],
)
def test_what_export_refuses(options: list[str], message: str) -> None:
    code, out, err = invoke("export", str(checkpoint("htdemucs_nf")), *options)
    assert (code, out) == (USAGE, "")
    assert message in " ".join(err.split())
