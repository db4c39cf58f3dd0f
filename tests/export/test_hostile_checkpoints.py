"""Checkpoints made to harm: nothing of them runs, nothing is imported, and memory and time stay small."""

from __future__ import annotations

import builtins
import copyreg
import os
import pickle
import random
import struct
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pickles
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pickles import integer, items, named, program, tensor, text, write, write_zip

from mrsep_deploy.errors import CheckpointError, MrsepError, UnsafeCheckpointError
from mrsep_deploy.export.checkpoint.read import read_checkpoint
from mrsep_deploy.export.families import known_classes

MEMORY = 200 * 2**20  # bytes of Python objects, for any file of this test
SECONDS = 20.0


class Reduced:
    """Pickled, it is a call of ``function`` with ``arguments``."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that the payloads would make; it must be absent afterwards."""
    path = tmp_path / "pwned"
    yield path
    assert not path.exists()


@pytest.fixture(scope="module", autouse=True)
def honest_file_read_before(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What reading imports for itself (zipfile: a codec) is imported before anything is compared."""
    read_checkpoint(write(tmp_path_factory.mktemp("honest") / "model.th"), known_classes())


def refused(path: Path, said: str) -> UnsafeCheckpointError:
    before = set(sys.modules)
    with pytest.raises(UnsafeCheckpointError) as caught:
        read_checkpoint(path, known_classes())
    assert set(sys.modules) == before
    assert f"the file asks for {said}" in caught.value.message
    return caught.value


def failed(path: Path, said: str) -> None:
    """Reading fails with this message, within memory and time."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(CheckpointError, match=said):
            read_checkpoint(path, known_classes())
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize("part", ["klass", "args", "kwargs", "state", "training_args", "extra"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_call_anywhere_is_refused_by_name(tmp_path: Path, marker: Path, part: str, legacy: bool) -> None:
    package = {"klass": 1, "args": (), "kwargs": {}, "state": {}, "training_args": {}}
    package[part] = Reduced(os.system, f"touch {marker}")
    path = tmp_path / "model.th"
    torch.save(package, path, _use_new_zipfile_serialization=not legacy)
    assert refused(path, f"{os.system.__module__}.system").fix


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        (builtins.eval, ("open({marker!r}, 'w')",), "builtins.eval"),
        (builtins.exec, ("open({marker!r}, 'w')",), "builtins.exec"),
        (builtins.open, ("{marker}", "w"), "io.open"),
        (builtins.getattr, (os, "system"), "builtins.getattr"),
        (builtins.__import__, ("antigravity",), "builtins.__import__"),
        (torch.load, ("{marker}",), "torch.serialization.load"),
        (torch.hub.load, ("{marker}", "x"), "torch.hub.load"),
        (torch.nn.Linear, (2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_well_known_payloads(
    tmp_path: Path,
    marker: Path,
    function: Callable[..., object],
    arguments: tuple[object, ...],
    said: str,
    protocol: int,
) -> None:
    given = [item.format(marker=str(marker)) if isinstance(item, str) else "os" for item in arguments]
    payload = pickle.dumps(Reduced(function, *given), protocol)
    if protocol < 3:
        said = said.replace("builtins.", "__builtin__.")
        said = said.replace("io.open", pickle.whichmodule(open, "open") + ".open")
    refused(write_zip(tmp_path / "zip.th", payload), said)
    (tmp_path / "bare.th").write_bytes(payload)
    refused(tmp_path / "bare.th", said)


SYSTEM = b"(" + text("touch pwned") + b"t"


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (named("posix", "system") + SYSTEM + b"R", "posix.system"),
        (text("posix") + text("system") + b"\x93" + SYSTEM + b"R", "posix.system"),
        (text("fractions") + text("Fraction.__init__.__globals__") + b"\x93", "fractions.Fraction.__init__"),
        (text("torch") + text("serialization.os.system") + b"\x93", "torch.serialization.os.system"),
        (text("fractions.Fraction") + text("") + b"\x93", "fractions.Fraction."),
        (text("torch._utils") + integer(3) + b"\x93", "a global whose name is made of str and int"),
        (named("demucs.states", "load_model"), "demucs.states.load_model"),
        (named("demucs.htdemucs", "th.load"), "demucs.htdemucs.th.load"),
        (named("collections", "defaultdict"), "collections.defaultdict"),
        (named("omegaconf.dictconfig", "DictConfig"), "omegaconf.dictconfig.DictConfig"),
        (text("evil\u202e") + text("x") + b"\x93", r"evil\u202e.x"),
        (b"(" + text("x") + b"ios\nsystem\n", "os.system"),
        (b"\x82\x01", "number 1 of the extensions"),
        (b"\x83\x01\x01", "number 257 of the extensions"),
        (b"\x84\x01\x00\x00\x00", "number 1 of the extensions"),
        (b"Pwhatever\n", "the pickle instruction PERSID"),
        (text("key") + b"Q", "a persistent object"),
        (
            b"(" + text("storage") + named("torch", "Size") + text("0") + text("cpu") + b"K\x02tQ",
            "a persistent",
        ),
        (b"\x97", "the pickle instruction NEXT_BUFFER"),
        (b"\x8f(K\x01\x90", "the pickle instruction EMPTY_SET"),
        (named("demucs.htdemucs", "HTDemucs") + b")R", "demucs.htdemucs.HTDemucs to be called"),
        (named("demucs.htdemucs", "HTDemucs") + b")\x81", "an object of demucs.htdemucs.HTDemucs to be made"),
        (
            named("demucs.htdemucs", "HTDemucs") + b")}\x92",
            "an object of demucs.htdemucs.HTDemucs to be made",
        ),
        (b"(" + named("demucs.htdemucs", "HTDemucs") + b"o", "an object of demucs.htdemucs.HTDemucs"),
        (named("demucs.htdemucs", "HTDemucs") + b"}b", "the state of demucs.htdemucs.HTDemucs to be set"),
        (named("torch", "FloatStorage") + b")R", "torch.FloatStorage to be called"),
        (named("collections", "OrderedDict") + b"}" + text("x") + b"K\x01sb", "the state of"),
        (named("collections", "OrderedDict") + b")R}" + text("keys") + b"K\x01sb", "the state of a dict"),
        (tensor() + b"}b", "the state of a TensorSpec to be set"),
        (b"]}b", "the state of a list"),
        (text("print") + b")R", "a str to be called"),
        (b")K\x01a", "values to be appended to a tuple"),
        (named("torch", "Size") + text("a") + b"K\x01s", "items to be set in a Name"),
        (named("_codecs", "encode") + b"(" + text("x" * 9) + text("latin1") + b"tR", "_codecs.encode"),
        (named("_codecs", "encode") + b"(" + text("x") + text("rot13") + b"tR", "_codecs.encode"),
    ],
)
def test_tricks_of_the_pickle_machine(tmp_path: Path, marker: Path, payload: bytes, said: str) -> None:
    refused(write(tmp_path / "model.th", kwargs=items(x=payload)), said)


HTDEMUCS = named(*pickles.KLASS.rsplit(".", 1))
SOURCE = "import os\nos.system('touch pwned')\n\n\nclass HTDemucs:\n    os.system('touch pwned')\n"


@pytest.mark.parametrize("source", [text(SOURCE), text("class HTDemucs(:"), text("\0"), text(""), b"N"])
def test_the_source_of_a_class_is_never_more_than_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: bytes
) -> None:
    """What torch before 1.6 put beside the class of a module. Nothing compiles it, or opens the file it names."""

    def fail(*_given: object, **_named: object) -> None:
        raise AssertionError("the source was used")

    monkeypatch.chdir(tmp_path)
    path = pickles.write_legacy(
        tmp_path / "old.th", klass=pickles.module(HTDEMUCS, text("/dev/zero"), source)
    )
    before = set(sys.modules)
    with monkeypatch.context() as patched:
        for name in ("compile", "exec", "eval"):
            patched.setattr(builtins, name, fail)
        found = read_checkpoint(path, known_classes())
    assert (found.klass, found.state["w"].tolist()) == (pickles.KLASS, [1.0, 2.0])
    assert set(sys.modules) == before
    assert [file.name for file in tmp_path.iterdir()] == ["old.th"]


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (pickles.module(named("posix", "system"), text("a.py"), text(SOURCE)), "posix.system"),
        (pickles.module(named("torch", "FloatStorage"), text("a.py"), text(SOURCE)), "a persistent object"),
        (pickles.module(text(pickles.KLASS), text("a.py"), text(SOURCE)), "a persistent object"),
        (pickles.module(HTDEMUCS, text("a.py"), integer(3)), "a persistent object"),
        (pickles.module(HTDEMUCS, b"]", text(SOURCE)), "a persistent object"),
        (pickles.module(HTDEMUCS), "a persistent object"),
        (pickles.module(HTDEMUCS, text("a.py"), text(SOURCE), text("more")), "a persistent object"),
        (
            pickles.module(HTDEMUCS, text("a.py"), text(SOURCE)) + b")\x81",
            f"an object of {pickles.KLASS} to be made",
        ),
        (pickles.module(HTDEMUCS, text("a.py"), text(SOURCE)) + b")R", f"{pickles.KLASS} to be called"),
    ],
)
def test_tricks_with_the_source_of_a_class(tmp_path: Path, marker: Path, payload: bytes, said: str) -> None:
    refused(pickles.write_legacy(tmp_path / "old.th", klass=payload), said)


def test_a_source_without_end(tmp_path: Path) -> None:
    klass = pickles.module(HTDEMUCS, text("a.py"), text("x" * 9 * 2**20))
    failed(pickles.write_legacy(tmp_path / "old.th", klass=klass), "longer than 8,388,608 bytes")


def test_one_state_under_many_names(tmp_path: Path) -> None:
    """Looking for the state of a training checkpoint takes a look at each dict once, however often it is there."""
    names = [integer(index) for index in range(60_000)]
    spec = tensor() + b"q\x00"
    state = b"}q\x01(" + names[0] + spec + b"".join(name + b"h\x00" for name in names[1:]) + b"u"
    root = b"}(" + text("a") + state + b"".join(name + b"h\x01" for name in names) + b"u."
    path = write_zip(tmp_path / "model.th", b"\x80\x02" + root, data_0=struct.pack("<2f", 1.0, 2.0))
    failed(path, "lacks klass, args, kwargs, state")


def test_registered_extensions_are_not_looked_up(tmp_path: Path, marker: Path) -> None:
    copyreg.add_extension(os.system.__module__, "system", 200)
    try:
        pickle.loads(b"\x80\x02\x82\xc8.")  # puts the function into the interpreter's own cache
        refused(write(tmp_path / "model.th", args=b"\x82\xc8" + SYSTEM + b"R"), "number 200")
    finally:
        copyreg.remove_extension(os.system.__module__, "system", 200)
        copyreg.clear_extension_cache()


def test_a_whole_pickled_model(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.th")
    error = refused(tmp_path / "model.th", "torch.nn.modules.linear.Linear")
    assert "whole pickled module" in error.message


def nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    return opening * depth + closing * depth


def doubled(times: int) -> bytes:
    """A list that holds twice a list that holds twice ..."""
    return b"]q\x000" + b"](h\x00h\x00eq\x000" * times + b"h\x00"


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (nested(b"]", b"a", 100_000)[:-1], "kwargs is nested"),
        (b")" + b"\x85" * 200_000, "nested"),
        (b"}" + b")" + b"\x85" * 200_000 + b"K\x01s", "tuple as a key"),
        (b"]q\x00h\x00a", "nested"),
        (doubled(31), "more than 250,000 values"),
        (doubled(60), "nested"),
        (text("x" * 100_000) + b"q\x000](" + b"h\x00" * 1000 + b"e", "values and characters"),
        (b"0" * 10, "stops making sense"),
        (b"N" * 600_000, "more than 500,000 instructions"),
        (b"\x8b" + struct.pack("<i", 2**31 - 1), "stops making sense"),
        (b"\x8b" + struct.pack("<i", -1), "stops making sense"),
        (b"\x8e" + struct.pack("<Q", 2**62), "stops making sense"),
        (b"\x8d" + struct.pack("<Q", 2**64 - 1), "stops making sense"),
        (b"\x8b" + struct.pack("<i", 5_000_000) + b"\x7f" * 5_000_000, "an integer of 39,"),
        (integer(2**100), "more than 64 bits"),
        (b"I" + b"9" * 10_000 + b"\n", "stops making sense"),
        (b"Nr" + struct.pack("<I", 2**32 - 1) + b"j" + struct.pack("<I", 7), "stops making sense"),
        (b"t", "stops making sense"),
        (text("x") * 2 + b"\xff", "stops making sense"),
        (b"B" + struct.pack("<I", 9 * 2**20) + bytes(9 * 2**20), "expected at most 8,388,608"),
        (named("fractions", "Fraction") + b"(" + text("1e999999999") + b"tR", "fraction"),
        (named("fractions", "Fraction") + b"(" + text("9" * 100_000) + b"tR", "fraction"),
        (named("fractions", "Fraction") + b"(K\x01K\x00tR", "fraction"),
        (named("collections", "OrderedDict") + b"(]tR", "OrderedDict is declared"),
        (named("numpy", "dtype") + b"(" + text("O8") + b"tR", "numpy object"),
        (named("torch._utils", "_rebuild_qtensor"), "quantised tensor"),
        (named("diffq.uniform", "UniformQuantizer"), "DiffQ codes"),
        (tensor(), "TensorSpec, expected numbers"),
    ],
)
def test_bombs_in_the_pickle(tmp_path: Path, marker: Path, payload: bytes, said: str) -> None:
    failed(write(tmp_path / "model.th", kwargs=items(x=payload)), said)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (tensor(size=(3,)), "outside its storage"),
        (tensor(size=(2,), stride=(2,)), "outside its storage"),
        (tensor(offset=1), "outside its storage"),
        (tensor(offset=-1), "outside its storage"),
        (tensor(size=(0,), offset=3), "outside its storage"),
        (tensor(stride=(-1,)), "the stride"),
        (tensor(size=(-2,)), "the size"),
        (tensor(size=(2, 1)), "the size"),
        (tensor(size=(1,) * 9, stride=(1,) * 9), "the size"),
        (tensor(size=(2**60,), stride=(0,)), "the size"),
        (tensor(size=(2**30, 2**30), stride=(0, 0)), "the size"),
        (tensor(size=(0, 2**30, 2**30), stride=(1, 1, 1)), "the size"),
        (tensor(size=(2**30,), stride=(0,)), "bytes in memory"),
        (tensor(numel=2**39, size=(2**39,)), "bytes in memory"),
        (tensor(numel=2**70), "persistent object"),
        (tensor(numel=-1), "persistent object"),
        (tensor(numel=3), "has 8 bytes, expected 12"),
        (tensor(kind="HalfStorage"), "has 8 bytes, expected 4"),
        (tensor(key="1"), "lacks the storage 1"),
        (tensor(key="../data.pkl"), "lacks the storage"),
        (tensor(kind="Storage"), "torch.Storage"),
    ],
)
def test_tensors_that_cannot_be(tmp_path: Path, declared: bytes, said: str) -> None:
    failed(write(tmp_path / "model.th", state=items(w=declared)), said)


def test_many_copies_of_one_storage(tmp_path: Path) -> None:
    numel = 2**20
    one = tensor(size=(numel,), numel=numel) + b"q\x00"
    copies = b"".join(text(str(index)) + b"h\x00" for index in range(2000))
    data = program(state=b"}(" + text("w") + one + copies + b"u")
    failed(write_zip(tmp_path / "model.th", data, data_0=bytes(4 * numel)), "bytes in memory")


def test_storages_declared_twice(tmp_path: Path) -> None:
    state = items(a=tensor(), b=tensor(kind="IntStorage"))
    failed(write(tmp_path / "model.th", state=state), "two different ways")


def test_archives_that_are_not_torchs(tmp_path: Path) -> None:
    path = tmp_path / "model.th"
    content = bytes(8)
    failed(write_zip(path, program(), data_0=content, compress=True), "compressed")
    failed(write_zip(path, program(), data_0=content, top="a/.."), "path that torch.save never writes")
    failed(write_zip(path, program(), data_0=content, top="/a"), "path that torch.save never writes")
    failed(write_zip(path, program(), data_0=content, byteorder=b"middle"), "byte order is")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("elsewhere/data.pkl", b"")
    failed(path, "is outside of archive/")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("elsewhere/data.pkl", b"")
    failed(path, "twice")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/other", b"")
    failed(path, r"no archive/data\.pkl")


def test_archives_that_lie_about_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "model.th")
    honest = path.read_bytes()
    entry = honest.rindex(b"PK\x01\x02")
    for size in (2**31, 2**32 - 1):
        head = honest[: entry + 20] + struct.pack("<II", size, size) + honest[entry + 28 :]
        path.write_bytes(head)
        failed(path, "overlap|truncated or damaged")
    end = honest.rindex(b"PK\x05\x06")
    path.write_bytes(honest[: end + 12] + struct.pack("<I", 2**31) + honest[end + 16 :])
    failed(path, "truncated or damaged|lists")


def test_a_flipped_byte_of_a_weight_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "model.th")
    weights = struct.pack("<2f", 1.0, 2.0)
    path.write_bytes(path.read_bytes().replace(weights, weights[:-1] + b"\x41"))
    failed(path, r"archive/data/0 is damaged \(Bad CRC")


def test_an_endless_table_of_contents(tmp_path: Path) -> None:
    path = tmp_path / "model.th"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program())
        for index in range(50_000):
            info = zipfile.ZipInfo(f"archive/{index:050d}")
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
            info.CRC = info.header_offset = info.compress_size = info.file_size = 0
    failed(path, "lists .* bytes of members")


def test_a_header_of_safetensors_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 9 * 2**20) + b"{" + b" " * (9 * 2**20))
    failed(path, "the header has")
    for header in (b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"{" * 5000, b"{}"):
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        failed(path, "not a safetensors file|lacks klass")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small honest files of every container: what the mutations start from."""
    folder = tmp_path_factory.mktemp("small")
    state = {
        "a.weight": torch.randn(2, 3).half(),
        "b": torch.nn.Parameter(torch.randn(2)),
        "n": torch.tensor(3),
    }
    kwargs = {"kwargs": {"sources": ["drums"], "x": 1.5}, "training_args": {"seed": 42}}
    files = [
        pickles.save(folder / "zip.th", state, **kwargs),
        pickles.save(folder / "legacy.th", state, legacy=True, **kwargs),
        write(folder / "hand.th"),
    ]
    return [file.read_bytes() for file in files]


def survives(path: Path, content: bytes) -> None:
    """Reading either works or raises one of our errors."""
    path.write_bytes(content)
    try:
        read_checkpoint(path, known_classes())
    except MrsepError as error:
        assert str(error).isprintable()  # noqa: PT017


MODEST = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)


@MODEST
@given(which=st.integers(0, 2), seed=st.integers(0, 2**32), count=st.integers(1, 12), cut=st.floats(0, 3))
def test_damaged_files(
    tmp_path: Path, small: list[bytes], which: int, seed: int, count: int, cut: float
) -> None:
    content = bytearray(small[which])
    dice = random.Random(seed)
    for _ in range(count):
        content[dice.randrange(len(content))] = dice.randrange(256)
    survives(tmp_path / "model.th", bytes(content[: int(cut * len(content))]))


@MODEST
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4), st.integers(0, 4)), max_size=6))
def test_damaged_pickles_in_a_sound_archive(tmp_path: Path, edits: list[tuple[float, bytes, int]]) -> None:
    data = program(kwargs=items(x=b"](K\x01N\x88e"), training_args=items(seed=integer(42)))
    for where, inserted, removed in edits:
        position = int(where * len(data))
        data = data[:position] + inserted + data[position + removed :]
    survives(
        write_zip(tmp_path / "x.th", data, data_0=struct.pack("<2f", 1.0, 2.0)),
        (tmp_path / "x.th").read_bytes(),
    )


@MODEST
@given(data=st.binary(max_size=60))
def test_arbitrary_pickles(tmp_path: Path, data: bytes) -> None:
    path = write_zip(tmp_path / "x.th", b"\x80\x02" + data + b".")
    survives(path, path.read_bytes())
