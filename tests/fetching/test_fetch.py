"""``mrsep-deploy fetch``: from a name to a registered model; whatever goes wrong, nothing of it is there."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import small_package
from click.testing import CliRunner
from file_server import Answer, serving
from goldens import checkpoint

from mrsep_deploy.bundle import Bundle, published, registry
from mrsep_deploy.bundle.bag_file import BAG_FILE
from mrsep_deploy.commands.main import main
from mrsep_deploy.errors import DONE, FAILED, USAGE
from mrsep_deploy.files import paths

WEIGHTS = small_package.data()
HDEMUCS = Path(__file__).parents[1] / "golden" / "hdemucs" / "hdemucs.th"
WORDS = "For the tests"
CODE = (
    "import sys; from pathlib import Path; from mrsep_deploy.bundle import published\n"
    "published.FILE = Path(sys.argv.pop(1))\n"
    "from mrsep_deploy.commands.main import main; main(sys.argv[1:])\n"
)
"""The program with another list of published models."""


def entry(name: str, files: list[str], data: bytes, family: str = "htdemucs", more: str = "") -> str:
    return listed_model(name, dict.fromkeys(files, data), family, more)


def listed_model(name: str, files: Mapping[str, bytes], family: str, more: str = "") -> str:
    lines = [f'[models.{name}]\ntitle = "A test"\nfamilies = ["{family}"]', 'sources = ["drums", "bass"]']
    lines += ['licence = "own"', more]
    for file, data in files.items():
        sha256 = hashlib.sha256(data).hexdigest()
        lines.append(
            f'[[models.{name}.files]]\nname = "{file}"\naddress = "https://published.invalid/{file}"'
        )
        lines.append(f'bytes = {len(data)}\nsha256 = "{sha256}"')
    return "\n".join(lines) + "\n"


@pytest.fixture(autouse=True)
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of its own: one model, two together, one that cannot be exported, and one that is no checkpoint."""
    place = tmp_path / "list.toml"
    own = f'[licences.own]\nterms = "{WORDS}"\nsource = "here"\ncommercial = true\n'
    models = [
        entry("one", ["one-0.th"], WEIGHTS),
        entry("two", ["aa-0.th", "bb-0.th"], WEIGHTS),
        entry("other", ["other.th"], WEIGHTS, "no_such_family"),
        entry("evil", ["evil.th"], EVIL),
    ]
    place.write_text(own + "".join(models))
    monkeypatch.setattr(published, "FILE", place)
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    published.published.cache_clear()
    (tmp_path / "stick").mkdir()
    for name in ("one-0.th", "aa-0.th", "bb-0.th"):
        (tmp_path / "stick" / name).write_bytes(WEIGHTS)
    (tmp_path / "stick" / "evil.th").write_bytes(EVIL)
    return place


EVIL = b"cposix\nsystem\n(S'touch executed'\ntR."
"""A pickle that runs a command when it is loaded."""


@pytest.fixture(autouse=True)
def _list_again(listed: Path) -> object:
    yield
    published.published.cache_clear()


def invoke(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, arguments, prog_name="mrsep-deploy")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.output
    return done.exit_code, done.stdout, done.stderr


def refused(*arguments: str) -> str:
    """The line that says why a fetch failed; nothing is registered then, or lies among the models."""
    code, out, err = invoke("fetch", *arguments, "-q")
    assert code in (FAILED, USAGE)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert registry.removable_names() == []
    assert not paths.models_dir().exists() or not list(paths.models_dir().iterdir())
    return err


def test_a_model_is_fetched_exported_and_registered(tmp_path: Path) -> None:
    code, out, err = invoke("fetch", "one", "--from", "stick", "--json")
    assert code == DONE, err
    found = json.loads(out)
    bundle = Bundle.open(registry.resolve("one"))
    assert (found["name"], Path(found["path"])) == ("one", bundle.path)
    licence = bundle.manifest.licence
    assert (licence.terms, licence.source, licence.commercial) == (WORDS, "here", True)
    before = bundle.path.stat().st_mtime_ns
    again = json.loads(invoke("fetch", "one", "--from", "stick", "--json")[1])
    assert again == {**found, "was_there": True}
    assert bundle.path.stat().st_mtime_ns == before
    code, _, err = invoke("fetch", "two", "--name", "one", "--from", "stick")
    assert (code, "the name one belongs to another model" in err) == (USAGE, True)
    code, _, err = invoke("fetch", "one", "--from", "stick", "--layout", "whole")
    assert (code, "one is there already with split, expected whole" in err) == (USAGE, True)


@pytest.mark.slow
def test_a_configuration_beside_the_weights_and_a_segment_of_the_authors(
    listed: Path, tmp_path: Path
) -> None:
    small = checkpoint("roformer_small_bs")
    files = {"weights.ckpt": small.read_bytes(), "settings.yaml": small.with_suffix(".yaml").read_bytes()}
    long = {"long-0.th": HDEMUCS.read_bytes()}
    with listed.open("a") as out:
        out.write(listed_model("bare", files, "bs_roformer"))
        out.write(listed_model("long", long, "hdemucs", "segment = 2.5"))
    for name, data in {**files, **long}.items():
        (tmp_path / "stick" / name).write_bytes(data)
    for name in ("bare", "long"):
        code, _, err = invoke("fetch", name, "--from", "stick", "-q")
        assert (code, err) == (DONE, "")
    bare, longer = (Bundle.open(registry.resolve(name)).manifest for name in ("bare", "long"))
    assert bare.provenance["checkpoint"]["sha256"] == hashlib.sha256(files["weights.ckpt"]).hexdigest()  # type: ignore[index]
    assert longer.model.segment == 2.5


@pytest.mark.slow
def test_several_checkpoints_become_one_model(tmp_path: Path) -> None:
    (tmp_path / "home" / "models").mkdir(parents=True)
    left = tmp_path / "home" / "models" / ".two.999999999.0badcafe.part"
    (left / "aa").mkdir(parents=True)
    code, _, err = invoke("fetch", "two", "--from", "stick", "-q")
    assert (code, err) == (DONE, "")
    assert not left.exists(), "what a killed fetch has left"
    place = registry.resolve("two")
    assert sorted(path.name for path in place.iterdir()) == ["aa", BAG_FILE, "bb"]
    (listed,) = (each for each in json.loads(invoke("models", "--json")[1]) if each["name"] == "two")
    assert (listed["models"], listed["status"], listed["licence"]["terms"]) == (2, "ok", WORDS)
    code, _, _ = invoke("run", "-n", "two", "missing.wav", "--dry-run", "--allow", "commercial")
    assert code == FAILED, "it opens, and the song is missing"
    code, _, err = invoke("inspect", "two")
    assert (code, "this is a bag of several models, which only run takes" in err) == (FAILED, True)
    assert json.loads(invoke("fetch", "two", "--json")[1])["was_there"]
    (place / BAG_FILE).write_text('models = ["aa", "bb"]\nweights = [[1, 0, 0], [0, 1, 1]]\n')
    code, _, err = invoke("fetch", "two", "--from", "stick")
    assert (code, "belongs to another model" in err) == (USAGE, True)
    assert "damaged" in invoke("models", "list")[1], (
        "weights of other sources; the list is shown all the same"
    )
    (place / "notes.txt").write_text("mine")
    code, _, err = invoke("fetch", "two", "--from", "stick", "--overwrite")
    assert (code, "notes.txt is a file" in err) == (FAILED, True)
    assert invoke("models", "remove", "two")[0] == DONE
    assert not place.exists()


def test_a_place_that_is_taken_is_found_before_the_download() -> None:
    for name in ("one", "two"):
        (paths.models_dir() / name).mkdir(parents=True)
        (paths.models_dir() / name / "notes.txt").write_text("mine")
        code, _, err = invoke("fetch", name, "--from", "stick", "--overwrite")
        assert (code, "notes.txt" in err or "other things in it" in err) == (FAILED, True)
        assert not paths.cache_dir("downloads").exists()
        assert (paths.models_dir() / name / "notes.txt").exists()
    (paths.models_dir() / "two" / "notes.txt").unlink()
    (paths.models_dir() / "two").rmdir()
    (paths.models_dir() / "two").symlink_to(paths.models_dir() / "one")
    code, _, err = invoke("fetch", "two", "--from", "stick", "--overwrite")
    assert (code, "is no folder" in err) == (FAILED, True)


def test_what_cannot_be_fetched(tmp_path: Path) -> None:
    assert "no published model 'nothing' is known" in refused("nothing")
    assert "which this version cannot export" in refused("other", "--from", "stick")
    assert "is neither an address" in refused("one", "--from", "nowhere")
    (tmp_path / "stick" / "one-0.th").write_bytes(b"x" + WEIGHTS[1:])
    assert "it is damaged or another file" in refused("one", "--from", "stick")
    (tmp_path / "stick" / "one-0.th").unlink()
    assert "Put the file there, under this name" in refused("one", "--from", "stick")


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    """Neither where it takes the place of another, nor where its own hash is listed."""
    (tmp_path / "stick" / "one-0.th").write_bytes(EVIL)
    assert "it is damaged or another file" in refused("one", "--from", "stick")
    assert "posix.system" in refused("evil", "--from", "stick")
    assert not (tmp_path / "executed").exists()


def test_a_killed_fetch_leaves_no_model(listed: Path) -> None:
    pytest.importorskip("requests")
    with serving(**{"one-0_th": WEIGHTS}) as server:
        server.usual = Answer(stall=3 * 2**15)
        command = [sys.executable, "-c", CODE, str(listed), "fetch", "one", "--from", server.address]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                assert server.stalled.wait(120)
            finally:
                process.kill()
    assert registry.removable_names() == []
    assert not paths.models_dir().exists()
    assert [path.suffix for path in (paths.cache_dir("downloads") / "one").iterdir()] in ([".part"], [])


def test_run_says_the_one_command() -> None:
    code, _, err = invoke("run", "-n", "one", "song.wav")
    assert code == USAGE or "song.wav" in err
    code, _, err = invoke("inspect", "one")
    assert (code, err.endswith("Fetch it: mrsep-deploy fetch one\n")) == (USAGE, True)


def test_models_list_everything() -> None:
    found = json.loads(invoke("models", "list", "--all", "--json")[1])
    states = {each["name"]: each["state"] for each in found["published"]}
    assert states == {"one": "to fetch", "two": "to fetch", "other": "not supported yet", "evil": "to fetch"}
    assert found["published"][0]["licence"]["terms"] == WORDS
    assert found["models"] == json.loads(invoke("models", "list", "--json")[1])
    assert "not supported yet" in invoke("models", "list", "--all")[1]
