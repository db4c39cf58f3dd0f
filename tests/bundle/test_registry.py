"""Names stand for bundles; what is the user's own is never deleted, and no registration is lost."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
from bundles import tiny_bundle

from mrsep_deploy.bundle import Bundle, registry, registry_file, shipped, write_archive
from mrsep_deploy.errors import BundleError, FormatError, OutputError, UsageError
from mrsep_deploy.files import paths


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def managed(name: str) -> Bundle:
    bundle = tiny_bundle(paths.models_dir(), name)
    registry.register(bundle)
    return bundle


def by_name() -> dict[str, registry.RegisteredModel]:
    return {model.name: model for model in registry.list_models()}


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "htdemucs_2nn", "4.bands-v1", "x" * 64])
def test_good_names(name: str) -> None:
    assert registry.validate_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".x", "-x", "_x", "a/b", "a\\b", "a b", "a\n", "é", "x" * 65]
)
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError, match="not a name"):
        registry.validate_name(name)


# --- registering and resolving -----------------------------------------------------------------------------


def test_last_exported_is_the_default(home: Path, tmp_path: Path) -> None:
    first = managed("first")
    second = tiny_bundle(tmp_path, "second")
    registry.register(second, "other")
    assert registry.resolve(None) == registry.resolve("other") == second.path
    assert registry.resolve("first") == first.path
    managed("first")
    assert registry.resolve(None) == first.path
    assert [(m.name, m.is_default, m.managed, m.status) for m in registry.list_models()] == [
        ("first", True, True, "ok"),
        ("other", False, False, "ok"),
        (shipped.NAME, False, False, "ok"),
    ]
    assert by_name()["other"].digest == second.digest
    assert by_name()["other"].exported.endswith("+00:00")


def test_paths_are_taken_as_paths(home: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "here")
    archive = write_archive(bundle, tmp_path / "here.zip")
    assert registry.resolve("here") == registry.resolve("./here") == bundle.path
    assert registry.resolve(Path("here")) == bundle.path
    assert registry.resolve("here.zip") == archive
    managed("here")
    assert registry.resolve("here") == bundle.path, "a bundle in the working folder comes first"


@pytest.mark.parametrize("path", ["./nothing", "nothing/", "nothing.zip", "x" * 5000 + ".zip"])
def test_missing_path(home: Path, path: str) -> None:
    with pytest.raises(BundleError, match="there is no bundle at"):
        registry.resolve(path)


def test_before_any_export_there_is_the_shipped_model(home: Path) -> None:
    assert registry.resolve(None) == registry.resolve(shipped.NAME) == shipped.BUNDLE
    (only,) = registry.list_models()
    assert (only.name, only.is_default, only.managed, only.status) == (shipped.NAME, True, False, "ok")
    assert only.shipped
    with pytest.raises(UsageError) as caught:
        registry.resolve("htdemucs")
    assert str(caught.value) == (
        "no model 'htdemucs' yet (here: mrsep-small). Fetch it: mrsep-deploy fetch htdemucs"
    )
    assert not home.exists(), "looking creates nothing"


def test_an_export_comes_before_the_shipped_model(home: Path, tmp_path: Path) -> None:
    managed("mine")
    assert registry.resolve(None) == by_name()["mine"].path
    assert registry.resolve(shipped.NAME) == shipped.BUNDLE
    assert not by_name()[shipped.NAME].is_default
    same_name = tiny_bundle(tmp_path, "x")
    registry.register(same_name, shipped.NAME)
    assert registry.resolve(shipped.NAME) == same_name.path
    assert not by_name()[shipped.NAME].shipped
    registry.remove(shipped.NAME)
    assert registry.resolve(shipped.NAME) == shipped.BUNDLE


def test_the_shipped_model_is_not_removed(home: Path) -> None:
    with pytest.raises(UsageError, match="cannot be removed"):
        registry.remove(shipped.NAME)
    assert shipped.BUNDLE.exists()


def test_unknown_name_lists_what_there_is(home: Path) -> None:
    managed("htdemucs")
    managed("four")
    with pytest.raises(
        UsageError,
        match=r"no model 'htdemux' yet \(here: four, htdemucs, mrsep-small\)\. Did you mean htdemucs\?",
    ):
        registry.resolve("htdemux")
    with pytest.raises(
        UsageError, match=r"no model '' yet \(here: four, htdemucs, mrsep-small\)\. Give one of"
    ):
        registry.resolve("")
    with pytest.raises(UsageError, match=r"export FILE --name mine$"):
        registry.resolve("mine")


def test_missing_and_damaged(home: Path, tmp_path: Path) -> None:
    for name in ("gone", "cut", "old", "fine"):
        managed(name)
    (paths.models_dir() / "gone").rename(tmp_path / "gone-away")
    (paths.models_dir() / "cut" / "branch.16.onnx").write_bytes(b"")
    (paths.models_dir() / "old" / "manifest.json").write_text("{}")
    assert {name: model.status for name, model in by_name().items()} == {
        "gone": "missing",
        "cut": "damaged",
        "old": "damaged",
        "fine": "ok",
        shipped.NAME: "ok",
    }
    with pytest.raises(BundleError, match=r"the model gone was at .*mrsep-deploy models remove gone"):
        registry.resolve("gone")
    registry.remove("gone")
    assert "gone" not in by_name()


def test_name_of_managed_bundle_is_not_taken_away(home: Path, tmp_path: Path) -> None:
    managed("mine")
    other = tiny_bundle(tmp_path, "mine")
    for claim in (lambda: registry.check_free("mine", other.path), lambda: registry.register(other)):
        with pytest.raises(UsageError, match="belongs to the bundle at"):
            claim()
    registry.check_free("mine", paths.models_dir() / "mine")
    registry.register(other, "other")
    registry.register(tiny_bundle(tmp_path, "elsewhere"), "other")
    assert registry.resolve("other") == tmp_path / "elsewhere"


# --- a default that is chosen


def why() -> tuple[str, str]:
    found = registry.default_model()
    return found.name, found.reason


def test_a_chosen_default_is_not_changed_by_an_export(home: Path) -> None:
    assert why() == (shipped.NAME, "shipped")
    first = managed("first")
    assert why() == ("first", "last")
    registry.use("first")
    managed("second")
    assert why() == ("first", "chosen")
    assert registry.resolve(None) == first.path
    assert [name for name, model in by_name().items() if model.is_default] == ["first"]
    managed("first")  # again: the name is what was chosen
    assert why() == ("first", "chosen")
    registry.use(None)
    assert why() == ("first", "last")
    managed("second")
    assert why() == ("second", "last")


def test_the_shipped_model_can_be_chosen(home: Path) -> None:
    managed("mine")
    registry.use(shipped.NAME)
    assert why() == (shipped.NAME, "chosen")
    assert registry.resolve(None) == shipped.BUNDLE
    assert by_name()[shipped.NAME].is_default
    assert not by_name()["mine"].is_default


def test_only_what_there_is_can_be_chosen(home: Path) -> None:
    with pytest.raises(UsageError, match="no model 'nope' yet"):
        registry.use("nope")
    assert not paths.registry_file().exists()


def test_removing_the_chosen_default_resets_it(home: Path) -> None:
    for name in ("a", "b", "c"):
        managed(name)
    registry.use("a")
    registry.remove("b")
    assert why() == ("a", "chosen")
    registry.remove("a")
    assert why() == ("c", "last")
    registry.use(shipped.NAME)
    own = managed(shipped.NAME)  # a model of the user's own under that name
    assert registry.resolve(None) == own.path
    registry.remove(shipped.NAME)
    assert why() == ("c", "last"), "another model than the one that was chosen"


def test_a_registry_from_before_defaults_could_be_chosen(home: Path) -> None:
    managed("a")
    tree = json.loads(paths.registry_file().read_text())
    assert list(tree) == ["format", "format_version", "last", "models"], "older versions read it, too"
    assert why() == ("a", "last")
    registry.use("a")
    chosen = json.loads(paths.registry_file().read_text())
    assert chosen == {**tree, "chosen": "a"}
    registry.use(None)
    assert json.loads(paths.registry_file().read_text()) == tree


# --- names for the shell


def test_names_are_known_without_opening_a_bundle(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "a"):
        managed(name)
    monkeypatch.setattr(Bundle, "open", lambda *_: pytest.fail("a bundle was opened"))
    assert registry.names() == ["a", "b", shipped.NAME]


# --- removing ----------------------------------------------------------------------------------------------


def test_remove_deletes_only_what_is_managed(home: Path, tmp_path: Path) -> None:
    mine = tiny_bundle(tmp_path, "mine")
    registry.register(mine)
    kept = managed("kept")
    managed("b")
    registry.register(kept, "alias")  # of a managed folder, but not by its own name
    registry.remove("alias")
    registry.remove("mine")
    registry.remove("b")
    assert mine.path.is_dir()
    assert kept.path.is_dir()
    assert sorted(path.name for path in paths.models_dir().iterdir()) == ["kept"]
    assert list(by_name()) == ["kept", shipped.NAME]
    with pytest.raises(UsageError, match="no model 'mine' yet"):
        registry.remove("mine")


def test_default_falls_back_to_the_one_before(home: Path) -> None:
    for name in ("z", "a", "m"):
        managed(name)
    registry.remove("z")
    assert by_name()["m"].is_default
    registry.remove("m")
    assert by_name()["a"].is_default
    registry.remove("a")
    assert registry.resolve(None) == shipped.BUNDLE


def test_links_are_never_followed_out(home: Path, tmp_path: Path) -> None:
    precious = tiny_bundle(tmp_path, "precious")
    paths.models_dir().mkdir(parents=True)
    (paths.models_dir() / "link").symlink_to(precious.path)
    registry.register(Bundle.open(paths.models_dir() / "link"), "link")
    inner = managed("inner")
    (inner.path / "out").symlink_to(precious.path)
    registry.remove("link")
    registry.remove("inner")
    assert Bundle.open(precious.path)
    assert not inner.path.exists()


@pytest.mark.parametrize("name", ["..", "../precious", "."])
def test_registry_that_names_paths_is_refused(home: Path, tmp_path: Path, name: str) -> None:
    managed("a")
    tree = json.loads(paths.registry_file().read_text())
    tree["models"][name] = {**tree["models"]["a"], "path": str(paths.models_dir() / name)}
    paths.registry_file().write_text(json.dumps(tree))
    with pytest.raises(FormatError, match=r"models: a key is '\."):
        registry.remove(name)
    assert home.is_dir()


# --- the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"\xff", b'{"format": "x", "format_version": 1, "last": null, "models": {}}'],
)
def test_damaged_registry_is_left_alone(home: Path, content: bytes) -> None:
    bundle = managed("a")
    paths.registry_file().write_bytes(content)
    for use in (registry.list_models, lambda: registry.register(bundle), lambda: registry.resolve("a")):
        with pytest.raises(FormatError, match=r"registry.*json") as caught:
            use()
        assert str(paths.registry_file()) in caught.value.fix
    assert paths.registry_file().read_bytes() == content


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("last", "b"),
        ("last", 1),
        ("chosen", "b"),
        ("chosen", 1),
        ("models", []),
        ("format_version", 2),
        ("extra", 1),
    ]
    + [
        ("models", {"a": entry})
        for entry in (None, {}, {"path": 1, "digest": "0" * 64, "registered": "2026"})
    ],
)
def test_registry_with_a_wrong_field(home: Path, key: str, value: object) -> None:
    managed("a")
    tree = json.loads(paths.registry_file().read_text())
    paths.registry_file().write_text(json.dumps({**tree, key: value}))
    with pytest.raises(FormatError, match=key):
        registry.list_models()


def test_failed_write_keeps_the_old(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = managed("a")
    before = paths.registry_file().read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="Free some space"):
        registry.register(bundle, "b")
    assert paths.registry_file().read_bytes() == before
    assert sorted(path.name for path in home.iterdir()) == ["models", "registry.json", "registry.lock"]


def test_exports_at_once_lose_nothing(home: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "one")
    code = (
        "import sys; from mrsep_deploy.bundle import registry; from mrsep_deploy.bundle import Bundle\n"
        "b = Bundle.open(sys.argv[1])\n"
        "for i in range(15): registry.register(b, f'{sys.argv[2]}{i}')"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(bundle.path), who]) for who in "abc"]
    assert [run.wait(timeout=60) for run in runs] == [0, 0, 0]
    assert set(by_name()) - {shipped.NAME} == {f"{who}{i}" for who in "abc" for i in range(15)}


def test_lock_that_is_not_given_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = managed("a")
    monkeypatch.setattr(registry_file, "LOCK_SECONDS", 0.1)
    with (
        filelock.FileLock(home / "registry.lock"),
        pytest.raises(OutputError, match=r"another process has held .*registry\.lock"),
    ):
        registry.register(bundle, "b")
    assert list(by_name()) == ["a", shipped.NAME], "reading needs no lock"


def test_lock_that_cannot_be_made(home: Path) -> None:
    bundle = managed("a")
    (home / "registry.lock").unlink(missing_ok=True)
    (home / "registry.lock").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        registry.register(bundle, "b")


# --- places ------------------------------------------------------------------------------------------------


def test_home_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(OutputError, match=r"cannot be written.*MRSEP_DEPLOY_HOME"):
        registry.register(tiny_bundle(tmp_path))


def test_relative_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", "models")
    with pytest.raises(UsageError, match="expected an absolute path"):
        paths.data_dir()


def test_home_is_tidied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", f"{tmp_path}/x/../home/")
    assert paths.models_dir() == tmp_path / "home" / "models"
    managed("a")
    assert by_name()["a"].managed


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", "")
    monkeypatch.setattr("platformdirs.user_data_path", lambda *_, **__: Path("~/.local/share"))
    with pytest.raises(UsageError, match="no home folder"):
        paths.registry_file()


def test_platform_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MRSEP_DEPLOY_HOME", raising=False)
    assert paths.models_dir().is_absolute()
    assert "mrsep-deploy" in paths.cache_dir("engines").parts
