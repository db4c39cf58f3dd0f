"""Bundles are written whole or not at all, and read back as they were written."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
from bundles import tiny_bundle, tiny_files, tiny_manifest

from mrsep_deploy.bundle import Bundle, write_archive, write_bundle
from mrsep_deploy.errors import BundleError, OutputError, UsageError
from mrsep_deploy.files import parts


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_write_then_open(tmp_path: Path) -> None:
    written = tiny_bundle(tmp_path)
    opened = Bundle.open(tmp_path / "tiny")
    assert opened.manifest == written.manifest
    assert (
        opened.digest
        == written.digest
        == hashlib.sha256((written.path / "manifest.json").read_bytes()).hexdigest()
    )
    for stage in opened.manifest.graph_stages:
        data = opened.graph_bytes(stage)
        assert opened.graph_path(stage).read_bytes() == data
        info = opened.manifest.files[str(stage.file)]
        assert (info.sha256, info.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        onnxruntime.InferenceSession(data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_same_content_same_digest(tmp_path: Path) -> None:
    first, second = tiny_bundle(tmp_path / "a"), tiny_bundle(tmp_path / "b")
    assert first.digest == second.digest != tiny_bundle(tmp_path / "c", opset=18).digest


def test_stage_without_graph(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    with pytest.raises(ValueError, match="has no graph"):
        bundle.graph_bytes(bundle.manifest.stages[0])


def test_relative_path_and_link_to_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny_bundle(tmp_path)
    (tmp_path / "link").symlink_to(bundle.path)
    monkeypatch.chdir(tmp_path)
    assert Bundle.open("tiny").path == bundle.path
    assert Bundle.open("link").digest == bundle.digest


def test_unlisted_files_are_ignored(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    (bundle.path / "README.txt").write_text("hello")
    assert Bundle.open(bundle.path).digest == bundle.digest


# --- writing ---------------------------------------------------------------------------------------------


def test_overwrite_only_when_asked(tmp_path: Path) -> None:
    old = tiny_bundle(tmp_path)
    manifest = replace(tiny_manifest(), opset=18)
    with pytest.raises(OutputError, match="already holds a bundle"):
        write_bundle(old.path, manifest, tiny_files(manifest), overwrite=False)
    assert Bundle.open(old.path).digest == old.digest
    new = write_bundle(old.path, manifest, tiny_files(manifest), overwrite=True)
    assert new.manifest.opset == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_damaged_bundle_can_be_replaced(tmp_path: Path) -> None:
    old = tiny_bundle(tmp_path)
    (old.path / "branch.16.onnx").unlink()
    (old.path / ".DS_Store").write_bytes(b"")
    assert Bundle.open(tiny_bundle(tmp_path).path)


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert write_bundle(tmp_path / "empty", tiny_manifest(), tiny_files(tiny_manifest()), overwrite=False)


def make_other_folder(place: Path) -> None:
    place.mkdir()
    (place / "thesis.txt").write_text("years of work")


def make_foreign_manifest(place: Path) -> None:
    make_other_folder(place)
    (place / "manifest.json").write_text('{"name": "a browser extension"}')


def make_bundle_with_stems(place: Path) -> None:
    tiny_bundle(place.parent, place.name)
    (place / "vocals.wav").write_bytes(b"RIFF")


def make_file(place: Path) -> None:
    place.write_text("years of work")


def make_link(place: Path) -> None:
    place.symlink_to(tiny_bundle(place.parent, "elsewhere").path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_other_folder, "a folder with other things in it"),
        (make_foreign_manifest, "a folder with other things in it"),
        (make_bundle_with_stems, "holds 'vocals.wav'"),
        (make_file, "is a file"),
        (make_link, "is a link"),
    ],
)
def test_what_is_no_bundle_is_never_replaced(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "place")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=message) as caught:
        write_bundle(tmp_path / "place", tiny_manifest(), tiny_files(tiny_manifest()), overwrite=True)
    assert caught.value.fix
    assert contents(tmp_path) == before


def test_invalid_manifest_is_not_written(tmp_path: Path) -> None:
    files = tiny_files(tiny_manifest())
    del files["branch.16.onnx"]
    with pytest.raises(BundleError, match=r"branch\.16\.onnx"):
        write_bundle(tmp_path / "new", tiny_manifest(), files, overwrite=False)
    with pytest.raises(BundleError, match=r"a key is '\.\./evil\.onnx'"):
        write_bundle(tmp_path / "new", tiny_manifest(), {**files, "../evil.onnx": b""}, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_graph_that_is_none_is_not_written(tmp_path: Path) -> None:
    files = {**tiny_files(tiny_manifest()), "branch.16.onnx": b"not a graph"}
    with pytest.raises(BundleError, match=r"branch\.16\.onnx is not an ONNX"):
        write_bundle(tmp_path / "new", tiny_manifest(), files, overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "word"), [(errno.ENOSPC, "Free some space"), (errno.EROFS, "permissions"), (errno.EIO, "Choose")]
)
@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize("nth", [1, 2])
def test_failure_anywhere_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, word: str, call: str, nth: int
) -> None:
    """Disk full, read-only, broken: at the first or second fsync or rename (old aside; new in place)."""
    old = tiny_bundle(tmp_path)
    before = contents(tmp_path)
    real, calls = getattr(os, call), []

    def failing(*args: object) -> object:
        calls.append(args)
        if len(calls) == nth:
            raise OSError(code, os.strerror(code))
        return real(*args)

    monkeypatch.setattr(parts.os, call, failing)
    with pytest.raises(OutputError, match=word) as caught:
        write_bundle(old.path, tiny_manifest(), tiny_files(tiny_manifest()), overwrite=True)
    assert str(old.path) in str(caught.value)
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_interrupt_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tiny_bundle(tmp_path)
    before = contents(tmp_path)

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parts.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(old.path, tiny_manifest(), tiny_files(tiny_manifest()), overwrite=True)
    assert contents(tmp_path) == before


def test_old_that_cannot_be_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tiny_bundle(tmp_path)

    def busy(path: Path, ignore_errors: bool = False) -> None:
        raise PermissionError(errno.EACCES, "in use", str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    with pytest.raises(OutputError, match=r"is written, but .* in use\. Delete .*\.old yourself"):
        tiny_bundle(tmp_path, opset=18)
    assert Bundle.open(old.path).manifest.opset == 18


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        tiny_bundle(tmp_path / "file")


# --- archives ----------------------------------------------------------------------------------------------


def test_archive_is_the_same_bundle(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path)
    archive = Bundle.open(write_archive(folder, tmp_path / "out" / "tiny.zip"))
    assert (archive.digest, archive.manifest) == (folder.digest, folder.manifest)
    for stage in folder.manifest.graph_stages:
        assert archive.graph_bytes(stage) == folder.graph_bytes(stage)


def test_archive_is_deterministic(tmp_path: Path) -> None:
    first = write_archive(tiny_bundle(tmp_path / "a"), tmp_path / "a.zip")
    second = write_archive(Bundle.open(first), tmp_path / "b.zip")
    assert first.read_bytes() == second.read_bytes()


def test_archive_place(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    target = write_archive(bundle, tmp_path / "tiny.zip")
    with pytest.raises(OutputError, match="exists"):
        write_archive(bundle, target)
    assert write_archive(bundle, target, overwrite=True) == target
    with pytest.raises(UsageError, match=r"does not end in \.zip"):
        write_archive(bundle, tmp_path / "tiny.tar")
    (tmp_path / "folder.zip").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_archive(bundle, tmp_path / "folder.zip", overwrite=True)


def test_damaged_bundle_makes_no_archive(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    (bundle.path / "branch.time.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="has 0 bytes"):
        write_archive(bundle, tmp_path / "tiny.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_graph_path_of_archive(tmp_path: Path) -> None:
    archive = Bundle.open(write_archive(tiny_bundle(tmp_path), tmp_path / "tiny.zip"), verify=False)
    stage = archive.manifest.graph_stages[0]
    path = archive.graph_path(stage)
    assert path == tmp_path / "home" / "cache" / "bundles" / archive.digest / str(stage.file)
    assert path.read_bytes() == archive.graph_bytes(stage)
    inode = path.stat().st_ino
    assert archive.graph_path(stage).stat().st_ino == inode, "a good copy is not written again"
    path.write_bytes(b"x" * path.stat().st_size)
    assert archive.graph_path(stage).read_bytes() == archive.graph_bytes(stage), "a bad copy is"


def test_graph_path_with_unwritable_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The graph goes to a temporary folder, for as long as the bundle is open, and a warning says so."""
    archive = Bundle.open(write_archive(tiny_bundle(tmp_path), tmp_path / "tiny.zip"))
    stage = archive.manifest.graph_stages[0]
    (tmp_path / "home").write_text("in the way")
    path = archive.graph_path(stage)
    assert path.read_bytes() == archive.graph_bytes(stage)
    assert "unpacked for this run alone" in caplog.text
    assert "MRSEP_DEPLOY_HOME" in caplog.text


def test_copy_that_another_process_holds_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to replace it; it is good, so it is taken."""
    archive = Bundle.open(write_archive(tiny_bundle(tmp_path), tmp_path / "tiny.zip"))
    stage = archive.manifest.graph_stages[0]

    def overtaken(_: object, target: Path) -> None:
        target.write_bytes(archive.graph_bytes(stage))
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(parts.os, "replace", overtaken)
    path = archive.graph_path(stage)
    assert [entry.name for entry in path.parent.iterdir()] == [stage.file]


def test_two_processes_extract_at_once(tmp_path: Path) -> None:
    archive = write_archive(tiny_bundle(tmp_path), tmp_path / "tiny.zip")
    code = (
        "import sys; from mrsep_deploy.bundle import Bundle; b = Bundle.open(sys.argv[1])\n"
        "for _ in range(20):\n"
        "    for s in b.manifest.graph_stages:\n"
        "        p = b.graph_path(s); assert p.read_bytes() == b.graph_bytes(s)\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(archive)]) for _ in range(2)]
    assert [run.wait(timeout=60) for run in runs] == [0, 0]
    left = sorted(path.name for path in (tmp_path / "home" / "cache" / "bundles").rglob("*.onnx"))
    assert left == ["branch.16.onnx", "branch.time.onnx"]


def test_runtime_imports_neither_torch_nor_onnx(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    code = (
        "import sys; from mrsep_deploy.bundle import registry; from mrsep_deploy.bundle import Bundle\n"
        "Bundle.open(sys.argv[1]); assert not {'torch', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(bundle.path)], check=True)
