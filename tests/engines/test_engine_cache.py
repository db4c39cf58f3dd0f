"""The engine cache loads what its side-car confirms and nothing else, whoever writes, dies or fills the disk."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from mrsep_deploy.engines import cache as engine_cache
from mrsep_deploy.engines.cache import CachedEngine, EngineCache, NewEngine
from mrsep_deploy.engines.side_car import EngineKey
from mrsep_deploy.errors import OutputError

KEY = EngineKey(
    "ab" * 32, "trt", "10.13.2.6", "Fake GPU (sm_86)", "13.0", "fp32", 1, {"optimization_level": None}
)
DATA = bytes(range(256)) * 40


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


class Builder:
    """Counts its builds."""

    def __init__(self, data: bytes = DATA) -> None:
        self.builds = 0
        self.data = data

    def __call__(self) -> NewEngine:
        self.builds += 1
        return NewEngine(self.data, {"model": "m", "stage": "s"})


def files(cache: EngineCache) -> set[str]:
    return {path.suffix for path in cache.folder.iterdir()} if cache.folder.exists() else set()


def must_not_build() -> NewEngine:
    raise AssertionError("it was built again")


# --- what is loaded ----------------------------------------------------------------------------------------


def test_it_builds_once(cache: EngineCache) -> None:
    build = Builder()
    first, again = (cache.get_or_build(KEY, build) for _ in range(2))
    assert build.builds == 1
    assert (first.from_cache, again.from_cache) == (False, True)
    assert (first.data, first.details) == (again.data, again.details) == (DATA, {"model": "m", "stage": "s"})


def test_the_engine_file_is_what_the_library_gave(cache: EngineCache) -> None:
    cache.get_or_build(KEY, Builder())
    assert (cache.folder / f"{KEY.name}.engine").read_bytes() == DATA


def test_the_side_car_is_for_people(cache: EngineCache) -> None:
    cache.get_or_build(KEY, Builder())
    tree = json.loads((cache.folder / f"{KEY.name}.json").read_text())
    assert tree["key"]["target"] == "Fake GPU (sm_86)"
    assert tree["bytes"] == len(DATA)


CHANGES = {
    "graph": "cd" * 32, "engine": "trt-rtx", "library": "10.13.3.9", "target": "Fake GPU (sm_89)",
    "driver": "13.1", "precision": "fp16", "batch": 2, "options": {"optimization_level": 3},
}  # fmt: skip


@pytest.mark.parametrize("part", [field.name for field in fields(EngineKey)])
def test_every_part_of_the_key_counts(cache: EngineCache, part: str) -> None:
    cache.get_or_build(KEY, Builder(b"old"))
    other = replace(KEY, **{part: CHANGES[part]})
    assert cache.find(other) is None
    assert cache.get_or_build(other, Builder(b"new")).data == b"new"
    assert cache.get_or_build(KEY, must_not_build).data == b"old"


def truncate(engine: Path, side_car: Path) -> None:
    engine.write_bytes(DATA[:-1])


def lengthen(engine: Path, side_car: Path) -> None:
    engine.write_bytes(DATA + b"\0")


def flip(engine: Path, side_car: Path) -> None:
    engine.write_bytes(DATA[:99] + bytes([DATA[99] ^ 1]) + DATA[100:])


def empty(engine: Path, side_car: Path) -> None:
    engine.write_bytes(b"")


def no_engine(engine: Path, side_car: Path) -> None:
    engine.unlink()


def no_side_car(engine: Path, side_car: Path) -> None:
    side_car.unlink()


def half_a_side_car(engine: Path, side_car: Path) -> None:
    side_car.write_bytes(side_car.read_bytes()[:100])


def another_keys_side_car(engine: Path, side_car: Path) -> None:
    side_car.write_text(side_car.read_text().replace("10.13.2.6", "10.13.3.9"))


def a_newer_format(engine: Path, side_car: Path) -> None:
    side_car.write_text(side_car.read_text().replace('"format_version": 1', '"format_version": 2'))


def no_text(engine: Path, side_car: Path) -> None:
    side_car.write_bytes(b"\xff\xfe")


DAMAGE = [
    truncate, lengthen, flip, empty, no_engine, no_side_car, half_a_side_car, another_keys_side_car,
    a_newer_format, no_text,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_engines_are_built_again(cache: EngineCache, damage: Callable[[Path, Path], None]) -> None:
    cache.get_or_build(KEY, Builder())
    damage(cache.folder / f"{KEY.name}.engine", cache.folder / f"{KEY.name}.json")
    assert cache.find(KEY) is None
    rebuilt = cache.get_or_build(KEY, Builder(b"new"))
    assert (rebuilt.data, rebuilt.from_cache) == (b"new", False)
    assert cache.get_or_build(KEY, must_not_build).data == b"new"


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_engines_are_listed_and_pruned(
    cache: EngineCache, damage: Callable[[Path, Path], None]
) -> None:
    whole = replace(KEY, batch=2)
    for key in (KEY, whole):
        cache.get_or_build(key, Builder())
    damage(cache.folder / f"{KEY.name}.engine", cache.folder / f"{KEY.name}.json")
    entries = {entry.name: entry for entry in cache.entries()}
    assert entries[whole.name].problem == ""
    assert entries[KEY.name].problem or damage is flip, "listing does not hash"
    assert cache.prune().removed == 1
    assert [entry.name for entry in cache.entries()] == [whole.name]


def test_fresh_replaces(cache: EngineCache) -> None:
    cache.get_or_build(KEY, Builder(b"old"))
    assert cache.get_or_build(KEY, Builder(b"new"), fresh=True).data == b"new"
    found = cache.find(KEY)
    assert found is not None
    assert found.data == b"new"


def test_newest(cache: EngineCache) -> None:
    keys = [replace(KEY, options={"optimization_level": level}) for level in (3, 5, 1)]
    for key in keys:
        cache.get_or_build(key, Builder())
        time.sleep(0.002)  # side-cars count milliseconds
    assert cache.newest(lambda key: True) == keys[-1]
    assert cache.newest(lambda key: key.options["optimization_level"] != 1) == keys[1]
    assert cache.newest(lambda key: False) is None


# --- processes that build, wait and die --------------------------------------------------------------------

CHILD = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_engine_cache import DATA, KEY
from mrsep_deploy.engines.cache import EngineCache, NewEngine

folder, mark, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def build():
    with open(mark, "a") as file:
        file.write("building\\n")
    if how == "dies building":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(how) if how[0].isdigit() else 0)
    return NewEngine(DATA, {{}})

if how.startswith("dies writing"):
    real, left = os.replace, [int(how.split()[-1])]
    def replace(*arguments):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return real(*arguments)
    os.replace = replace

found = EngineCache(folder).get_or_build(KEY, build)
assert found.data == DATA
print("cached" if found.from_cache else "built")
"""


def child(cache: EngineCache, mark: Path, how: str) -> subprocess.Popen[str]:
    code = CHILD.format(tests=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(cache.folder), str(mark), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_two_processes_one_builds(cache: EngineCache, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    both = [child(cache, mark, "1.5") for _ in range(2)]
    results = sorted((process.communicate(timeout=60)[0].strip(), process.returncode) for process in both)
    assert results == [("built", 0), ("cached", 0)]
    assert mark.read_text() == "building\n"


def test_who_waits_is_told(cache: EngineCache, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mark = tmp_path / "mark"
    other = child(cache, mark, "1.5")
    while not mark.exists():
        time.sleep(0.02)
    with caplog.at_level(logging.WARNING):
        assert cache.get_or_build(KEY, must_not_build).from_cache
    other.communicate(timeout=60)
    assert "another process is building this engine" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("how", ["dies building", "dies writing 0", "dies writing 1"])
def test_a_killed_build_leaves_nothing_to_load(cache: EngineCache, tmp_path: Path, how: str) -> None:
    process = child(cache, tmp_path / "mark", how)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert cache.find(KEY) is None
    assert cache.newest(lambda key: True) is None
    left = files(cache) - {".lock"}
    assert (left == set()) == (how == "dies building")
    assert cache.prune().removed == (0 if how == "dies building" else 1)
    assert files(cache) == set()
    assert not cache.get_or_build(KEY, Builder()).from_cache


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_build_holds_nobody_up(cache: EngineCache, tmp_path: Path) -> None:
    child(cache, tmp_path / "mark", "dies writing 1").communicate(timeout=60)
    assert cache.get_or_build(KEY, Builder()).data == DATA
    assert cache.get_or_build(KEY, must_not_build).data == DATA


def test_a_build_that_fails_leaves_nothing(cache: EngineCache) -> None:
    def fail() -> NewEngine:
        raise ValueError("no such operator")

    with pytest.raises(ValueError, match="no such operator"):
        cache.get_or_build(KEY, fail)
    assert files(cache) <= {".lock"}
    assert cache.get_or_build(KEY, Builder()).data == DATA


# --- disks that cannot be written --------------------------------------------------------------------------


@pytest.mark.parametrize("failing", [0, 1])
def test_a_full_disk(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failing: int
) -> None:
    """The engine is used all the same, whether the disk is full at the engine or only at its side-car."""
    written: list[Path] = []
    real = engine_cache.write_file

    def write(path: Path, data: bytes) -> None:
        if len(written) == failing:
            raise OutputError(f"{path} cannot be written: {os.strerror(errno.ENOSPC)}")
        written.append(path)
        real(path, data)

    monkeypatch.setattr(engine_cache, "write_file", write)
    with caplog.at_level(logging.WARNING):
        assert cache.get_or_build(KEY, Builder()).data == DATA
    assert len(caplog.records) == 1
    assert "the engine is not kept for the next run" in caplog.text
    assert "No space left" in caplog.text
    assert files(cache) == {".lock"}


def test_a_place_that_cannot_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = EngineCache(tmp_path / "file" / "engines")
    with caplog.at_level(logging.WARNING):
        assert cache.get_or_build(KEY, Builder()).data == DATA
    assert len(caplog.records) == 1
    assert cache.find(KEY) is None


def test_an_engine_that_must_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        EngineCache(tmp_path / "file" / "engines", must_keep=True).get_or_build(KEY, Builder())


def test_a_read_only_cache(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is there is loaded; what is not is built and used. (A fake, since root may write anywhere.)"""
    cache.get_or_build(KEY, Builder())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr("mrsep_deploy.files.parts.os.replace", refuse)
    with caplog.at_level(logging.WARNING):
        assert cache.get_or_build(KEY, must_not_build).data == DATA
        assert caplog.records == []
        assert cache.get_or_build(replace(KEY, batch=2), Builder(b"2")).data == b"2"
    assert len(caplog.records) == 1


# --- pruning -----------------------------------------------------------------------------------------------


def aged(cache: EngineCache, key: EngineKey, days: float) -> CachedEngine:
    built = cache.get_or_build(key, Builder())
    then = time.time() - days * 86400
    for suffix in ("engine", "json"):
        os.utime(cache.folder / f"{key.name}.{suffix}", (then, then))
    return built


def test_pruning_goes_by_the_last_use(cache: EngineCache) -> None:
    used, unused, new = (replace(KEY, batch=batch) for batch in (1, 2, 3))
    aged(cache, used, 40)
    aged(cache, unused, 40)
    aged(cache, new, 0)
    assert cache.find(used) is not None
    done = cache.prune(older_than=timedelta(days=30))
    assert (done.removed, done.busy) == (1, 0)
    assert done.bytes > len(DATA)
    assert {entry.name for entry in cache.entries()} == {used.name, new.name}


def test_pruning_leaves_what_is_whole(cache: EngineCache) -> None:
    aged(cache, KEY, 1000)
    assert cache.prune().removed == 0
    assert cache.find(KEY) is not None


def test_pruning_everything(cache: EngineCache) -> None:
    for batch in (1, 2):
        cache.get_or_build(replace(KEY, batch=batch), Builder())
    cache.timing_file("TensorRT 10", "Fake GPU").write_bytes(b"timings")
    (cache.folder / "notes.txt").write_text("somebody's own")
    assert cache.prune(everything=True).removed == 2
    assert [path.name for path in cache.folder.iterdir()] == ["notes.txt"]


def test_pruning_leaves_what_is_being_built(cache: EngineCache) -> None:
    cache.get_or_build(KEY, Builder())
    with FileLock(cache.folder / f"{KEY.name}.lock"):
        done = cache.prune(everything=True)
    assert (done.removed, done.busy) == (0, 1)
    assert cache.find(KEY) is not None


def test_pruning_leaves_the_lock_of_the_next_one(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may take the lock as soon as pruning has released it."""
    cache.get_or_build(KEY, Builder())
    place, release, taken = cache.folder / f"{KEY.name}.lock", FileLock.release, []

    def release_to_another(lock: FileLock, force: bool = False) -> None:
        release(lock, force)
        if not taken:
            taken.append(FileLock(place))
            taken[0].acquire(timeout=0)

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "release", release_to_another)
        assert cache.prune(everything=True).removed == 1
    with pytest.raises(Timeout):
        FileLock(place).acquire(timeout=0)
    taken[0].release()


def test_an_empty_cache(cache: EngineCache) -> None:
    assert cache.entries() == []
    assert cache.prune(everything=True).removed == 0
    assert not cache.folder.exists()
