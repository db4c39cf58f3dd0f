"""Checkpoints and bags as people have them: what is read equals what torch reads."""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import math
import shlex
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pickles
import pytest
import torch
from safetensors.torch import save_file

from mrsep_deploy.bundle.bag_file import read_bag_file
from mrsep_deploy.errors import CheckpointError, UnsafeCheckpointError
from mrsep_deploy.export.checkpoint.bags import bag_models
from mrsep_deploy.export.checkpoint.read import (
    Checkpoint,
    read_checkpoint,
    require_fit,
)
from mrsep_deploy.export.families import known_classes
from mrsep_deploy.export.load import load_model

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.th"))


@pytest.fixture
def some() -> dict[str, torch.Tensor]:
    """Tensors that lie in their storages in every way there is."""
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    return {
        "plain": torch.randn(3, 5),
        "parameter": torch.nn.Parameter(torch.randn(7)),
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "tied": base,
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "expanded": torch.ones(1).expand(4),
        "half": torch.randn(9).half(),
        "bfloat16": torch.randn(3, 3).bfloat16(),
        "double": torch.randn(4, dtype=torch.float64),
        "long": torch.arange(5),
        "byte": torch.arange(3, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
    }


def same(ours: dict[str, torch.Tensor], torchs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(torchs)
    for name, reference in torchs.items():
        expected = reference.detach().float() if reference.is_floating_point() else reference
        assert ours[name].dtype == expected.dtype, name
        assert ours[name].is_contiguous(), name
        assert torch.equal(ours[name], expected), name


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_packages(path: Path) -> None:
    checkpoint = read_checkpoint(path, known_classes())
    reference = pickles.load(path, checkpoint.klass)
    same(checkpoint.state, reference["state"])  # type: ignore[arg-type]
    assert checkpoint.klass in known_classes()
    assert checkpoint.kwargs == reference["kwargs"]
    assert checkpoint.training_args == reference["training_args"]
    assert checkpoint.storage_dtypes == ("float16",)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.path == path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_are_those_torch_reads(tmp_path: Path, some: dict[str, torch.Tensor], legacy: bool) -> None:
    path = pickles.save(tmp_path / "model.th", some, legacy=legacy)
    checkpoint = read_checkpoint(path, known_classes())
    same(checkpoint.state, pickles.load(path)["state"])  # type: ignore[arg-type]
    dtypes = "bfloat16 bool float16 float32 float64 int64 uint8".split()  # noqa: SIM905
    assert checkpoint.storage_dtypes == tuple(dtypes)


def test_a_package_that_holds_the_source_of_its_class(tmp_path: Path, some: dict[str, torch.Tensor]) -> None:
    """torch before 1.6 put it there, to warn if the class has changed. Here it is a text like any other."""
    training = {"training_args": {"seed": 42}}
    path = pickles.save_with_source(tmp_path / "model.th", some, **training)
    assert b"class HTDemucs(torch.nn.Module):" in path.read_bytes()
    found = read_checkpoint(path, known_classes())
    same(found.state, read_checkpoint(pickles.save(tmp_path / "new.th", some), known_classes()).state)
    assert (found.klass, found.kwargs) == (pickles.KLASS, {"segment": 7.8})
    assert found.training_args == training["training_args"]


def test_a_package_of_an_old_torch_becomes_a_model(tmp_path: Path) -> None:
    golden = read_checkpoint(GOLDEN[0], known_classes())
    path = pickles.save_with_source(
        tmp_path / "old.th", golden.state, golden.klass, args=golden.args, kwargs=golden.kwargs
    )
    model, again = load_model(GOLDEN[0]), load_model(path)
    same(again.model.state_dict(), model.model.state_dict())
    assert again.config == model.config


def test_tensors_share_no_memory(tmp_path: Path, some: dict[str, torch.Tensor]) -> None:
    state = read_checkpoint(pickles.save(tmp_path / "model.th", some), known_classes()).state
    before = state["transposed"].clone()
    state["tied"].zero_()
    assert torch.equal(state["transposed"], before)


def test_big_endian_storages(tmp_path: Path) -> None:
    path = tmp_path / "model.th"
    content = np.array([1.5, -2.0], ">f4").tobytes()
    pickles.write_zip(path, pickles.program(), data_0=content, byteorder=b"big")
    assert read_checkpoint(path, known_classes()).state["w"].tolist() == [1.5, -2.0]


def test_a_state_dict_with_module_versions(tmp_path: Path) -> None:
    module = torch.nn.BatchNorm1d(3)
    path = pickles.save(tmp_path / "model.th", module.state_dict())
    assert isinstance(module.state_dict(), collections.OrderedDict)
    same(read_checkpoint(path, known_classes()).state, dict(module.state_dict()))


def test_plain_values_come_through(tmp_path: Path) -> None:
    kwargs = {
        "segment": Fraction(39, 5),
        "sources": ["drums", "vocals"],
        "nested": {"a": (1, None, True), 3: -1.5},
        "big": 2**62,
        "size": torch.Size([2, 3]),
        "numpy": np.float64(0.25),
        "count": np.int64(-3),
        "flag": np.bool_(True),
    }
    training = {"lr": 3e-4, "end": math.inf, "name": "ünï"}
    path = pickles.save(tmp_path / "model.th", {}, kwargs=kwargs, training_args=training, extra=[1])
    checkpoint = read_checkpoint(path, known_classes())
    assert checkpoint.kwargs == kwargs
    assert type(checkpoint.kwargs["segment"]) is Fraction
    assert [type(checkpoint.kwargs[name]) for name in ("numpy", "count", "flag")] == [float, int, bool]
    assert checkpoint.training_args == training


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_torch_can_be_told_to_use(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.th"
    state = {"w": torch.randn(3)}
    with pickles.importable() as klass:
        package = {"klass": klass, "args": (), "kwargs": {"x": np.float32(0.5)}, "state": state}
        torch.save(package, path, pickle_protocol=protocol)
    checkpoint = read_checkpoint(path, known_classes())
    same(checkpoint.state, state)
    assert checkpoint.kwargs == {"x": 0.5}


@pytest.mark.parametrize("klass", known_classes())
def test_every_known_class_is_read_by_name(tmp_path: Path, klass: str) -> None:
    assert read_checkpoint(pickles.save(tmp_path / "m.th", {}, klass=klass), known_classes()).klass == klass


def test_an_unknown_class_is_named_with_the_known_ones(tmp_path: Path) -> None:
    path = pickles.save(tmp_path / "model.th", {}, klass="demucs.wdemucs.WDemucs")
    with pytest.raises(CheckpointError, match=r"demucs\.wdemucs\.WDemucs, expected one of demucs\.htdemucs"):
        read_checkpoint(path, known_classes())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    path = pickles.save(
        tmp_path / "model.th", {"good": torch.ones(2), "conv.bad": torch.tensor([1.0, value])}
    )
    with pytest.raises(CheckpointError, match=r"conv\.bad has NaN or infinite"):
        read_checkpoint(path, known_classes())


def test_a_double_too_large_for_float32(tmp_path: Path) -> None:
    path = pickles.save(tmp_path / "model.th", {"w": torch.tensor([1e300], dtype=torch.float64)})
    with pytest.raises(CheckpointError, match="in float32"):
        read_checkpoint(path, known_classes())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.ones(2, dtype=torch.complex64), "complex"),
        (3, "is int, expected a tensor"),
        (None, "is NoneType, expected a tensor"),
        ({"w": torch.ones(1)}, "is dict, expected a tensor"),
    ],
    ids=["sparse", "complex", "int", "None", "dict"],
)
def test_states_of_other_things(tmp_path: Path, value: object, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(pickles.save(tmp_path / "model.th", {"w": value}), known_classes())


@pytest.mark.parametrize("state", [{"__quantized": True, "data": []}, {"quantized": [], "others": []}])
def test_diffq_states(tmp_path: Path, state: object) -> None:
    with pytest.raises(CheckpointError, match=r"DiffQ codes.*save that"):
        read_checkpoint(pickles.save(tmp_path / "model.th", state), known_classes())


def test_what_is_no_package(tmp_path: Path) -> None:
    path = tmp_path / "model.th"
    for value, said in [
        ({"w": torch.ones(1)}, "bare state dict; expected a package with klass, args, kwargs, state"),
        ({"state": {}, "optimizer": {}}, r"lacks klass, args, kwargs \(it has state, optimizer\)"),
        (torch.ones(1), "single tensor"),
        ([1], "of type list"),
        ({}, "it has nothing"),
    ]:
        torch.save(value, path)
        with pytest.raises(CheckpointError, match=said):
            read_checkpoint(path, known_classes())


# --- training checkpoints


@pytest.fixture
def golden() -> Checkpoint:
    """A small model of two resolutions; its weights are those in a training checkpoint below."""
    return read_checkpoint(GOLDEN[0], known_classes())


def optimiser(state: dict[str, torch.Tensor]) -> dict[str, object]:
    """The state of an Adam that has made a step."""
    parameters = [torch.nn.Parameter(value.clone()) for value in state.values()]
    adam = torch.optim.Adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    return adam.state_dict()


def made_by(line: str, golden: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the line as a shell would, with the model's own class and arguments in it."""
    assert "\n" not in line
    python, option, code, *files = shlex.split(line[line.index("python -c") :])
    assert (python, option, len(files)) == ("python", "-c", 2)
    sources = "{'sources': ['drums', 'bass', 'other', 'vocals']}"
    for example, value in (("'demucs.htdemucs.HTDemucs'", golden.klass), (sources, golden.kwargs)):
        assert code.count(example) == 1
        code = code.replace(example, repr(value))
    monkeypatch.setattr(sys, "argv", ["-c", *files])
    exec(code, {"Fraction": Fraction})
    return Path(files[1])


def wrapped(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("kind", ["demucs", "plain", "lightning", "parallel", "average", "bare"])
def test_a_training_checkpoint_comes_with_the_line_that_makes_a_package_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Checkpoint, kind: str
) -> None:
    state = golden.state
    other = {name: value + 1 for name, value in state.items()}
    adam = optimiser(state)
    training: dict[str, Any] = {
        "demucs": {
            "state": other,
            "optimizer": adam,
            "history": [{"loss": 0.5}],
            "best_state": state,
            "args": {"a": 1},
        },
        "plain": {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": adam, "loss": 0.5},
        "lightning": {
            "epoch": 3,
            "global_step": 9,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": wrapped("model.", state),
            "optimizer_states": [adam],
            "lr_schedulers": [{"last_epoch": 3, "_last_lr": [1e-3]}],
            "hyper_parameters": {"lr": 1e-3},
        },
        "parallel": {"state_dict": wrapped("module.", state), "optimizer": adam},
        "average": {"step": 9, "average": state, "optimizer": adam, "random": torch.get_rng_state()},
        "bare": state,
    }
    path = tmp_path / "checkpoint.th"
    torch.save(training[kind], path)
    with pytest.raises(CheckpointError, match="expected a package with klass, args, kwargs, state") as caught:
        read_checkpoint(path, known_classes())
    assert not isinstance(caught.value, UnsafeCheckpointError)
    assert "weights_only=True" in caught.value.fix
    made = made_by(str(caught.value), golden, monkeypatch)
    assert made == tmp_path / "checkpoint.package.th"
    same(load_model(made).model.state_dict(), load_model(GOLDEN[0]).model.state_dict())


def test_a_training_checkpoint_with_objects_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Checkpoint
) -> None:
    """They would be made on loading, so the line is for the author alone, and says so."""
    path = tmp_path / "FILE"
    monkeypatch.chdir(tmp_path)
    for thing, name in [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (np.random.get_state(), "multiarray._reconstruct"),
        (Path("music"), "pathlib"),
        (collections.defaultdict(list), "collections.defaultdict"),
    ]:
        torch.save({"state": golden.state, "optimizer": optimiser(golden.state), "args": thing}, path)
        with pytest.raises(UnsafeCheckpointError, match=name) as caught:
            read_checkpoint(path, known_classes())
        assert "only if it is your own" in caught.value.fix
        made = made_by(str(caught.value), golden, monkeypatch)
        same(load_model(made).model.state_dict(), load_model(GOLDEN[0]).model.state_dict())


def test_a_training_checkpoint_of_demucs_lies_beside_a_package(tmp_path: Path) -> None:
    config = pickles.named("omegaconf.dictconfig", "DictConfig") + b")\x81"
    path = pickles.write(tmp_path / "checkpoint.th", args=config)
    with pytest.raises(UnsafeCheckpointError) as caught:
        read_checkpoint(path, known_classes())
    assert "export best.th" in caught.value.fix
    assert "weights_only=False" in caught.value.fix


def test_a_training_checkpoint_that_has_all_of_a_package_is_one(tmp_path: Path, golden: Checkpoint) -> None:
    package = {"klass": golden.klass, "args": golden.args, "kwargs": golden.kwargs}
    more = {"optimizer": optimiser(golden.state), "random": torch.get_rng_state(), "epoch": 3}
    for name in ("state", "model_state_dict"):
        torch.save({**more, **package, name: golden.state}, tmp_path / "checkpoint.th")
        same(
            load_model(tmp_path / "checkpoint.th").model.state_dict(),
            load_model(GOLDEN[0]).model.state_dict(),
        )
    torch.save({**more, **package, "model": golden.state, "ema": golden.state}, tmp_path / "checkpoint.th")
    with pytest.raises(CheckpointError, match=r"lacks state .*c\['model'\]"):
        read_checkpoint(tmp_path / "checkpoint.th", known_classes())


@pytest.mark.parametrize(
    "name",
    ["x']; import os; os.system('touch pwned') #", 'x"; touch pwned; "', "$(touch pwned)", "`x`", "a\nb", ""],
)
def test_no_text_of_the_file_becomes_part_of_a_command(tmp_path: Path, name: str) -> None:
    for value in ({name: {"w": torch.ones(1)}}, {"model": {f"{name}.w": torch.ones(1)}}):
        torch.save(value, tmp_path / "a $(touch pwned).th")
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(tmp_path / "a $(touch pwned).th", known_classes())
        line = caught.value.fix[caught.value.fix.index("python -c") :]
        assert "pwned" not in line
        assert "`" not in line
        assert shlex.split(line)[3:] == ["FILE", "FILE.package.th"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"\n <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"models: ['955717e8']\n", "bag"),
        (b"PK\x03\x04" + bytes(200), "truncated"),
        (b"\x80\x02", "truncated"),
        (b"RIFF1234WAVE", "not a torch package: it starts with RIFF|starts with b'RIFF"),
    ],
    ids=["empty", "html", "html after blanks", "lfs", "bag", "zip", "pickle", "wav"],
)
@pytest.mark.parametrize("suffix", [".th", ".safetensors"])
def test_other_files_under_a_checkpoints_name(tmp_path: Path, content: bytes, said: str, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    if suffix == ".safetensors" and content[:4] in (b"RIFF", b"\x80\x02"):
        said = "not a safetensors file"
    with pytest.raises(CheckpointError, match=said) as caught:
        read_checkpoint(path, known_classes())
    assert caught.value.fix
    assert caught.value.message.startswith(path.name)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as absent:
        read_checkpoint(tmp_path / "absent.th", known_classes())
    assert str(absent.value) == f"{tmp_path}/absent.th does not exist. Check the path"
    with pytest.raises(CheckpointError, match="folder"):
        read_checkpoint(tmp_path, known_classes())
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_checkpoint(tmp_path / "nul\0.th", known_classes())
    with pytest.raises(CheckpointError, match="device or a pipe"):
        read_checkpoint("/dev/zero", known_classes())


def test_torchscript(tmp_path: Path) -> None:
    path = pickles.write_zip(tmp_path / "model.th", pickles.program(), **{"constants.pkl": b""})
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_checkpoint(path, known_classes())


def metadata(**others: str) -> dict[str, str]:
    kwargs = {"segment": {"_type": "fraction", "numerator": 39, "denominator": 5}, "sources": ["a"]}
    return {"klass": pickles.KLASS, "args": "[1]", "kwargs": json.dumps(kwargs), **others}


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = {"b": torch.randn(3).half(), "a": torch.randn(2, 2), "n": torch.arange(3)}
    save_file(state, path, metadata())
    checkpoint = read_checkpoint(path, known_classes())
    same(dict(sorted(checkpoint.state.items())), dict(sorted(state.items())))
    assert checkpoint.klass == pickles.KLASS
    assert checkpoint.args == (1,)
    assert checkpoint.kwargs == {"segment": Fraction(39, 5), "sources": ["a"]}
    assert checkpoint.storage_dtypes == ("float16", "float32", "int64")
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "lacks klass, args, kwargs"),
        ({"klass": pickles.KLASS}, "lacks args, kwargs"),
        (metadata(structure="{}"), "DiffQ"),
        (metadata(klass="os.system"), r"os\.system, expected one of"),
        (metadata(kwargs="{"), "kwargs in the metadata is not JSON"),
        (metadata(kwargs="[" * 100_000), "kwargs in the metadata is not JSON"),
        (metadata(kwargs="[" * 40 + "]" * 40), "nested more than"),
        (metadata(kwargs="[]"), "kwargs is list"),
        (metadata(args="{}"), "args is dict"),
        (metadata(kwargs='{"a": 1' + "0" * 50 + "}"), "more than 64 bits"),
        (metadata(kwargs='{"a": {"_type": "fraction", "numerator": 1, "denominator": 0}}'), "fraction"),
        (metadata(kwargs='{"a": {"_type": "fraction", "numerator": "1e999999999"}}'), "fraction"),
        (metadata(kwargs='"' + "x" * 2_000_000 + '"'), "characters"),
    ],
    ids="none part diffq klass torn bomb deep list args int zero exponent long".split(),  # noqa: SIM905
)
def test_safetensors_with_other_metadata(tmp_path: Path, given: dict[str, str] | None, said: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(2)}, path, given)
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(path, known_classes())


def test_safetensors_with_other_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.tensor([math.nan])}, path, metadata())
    with pytest.raises(CheckpointError, match="w has NaN"):
        read_checkpoint(path, known_classes())
    save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, path, metadata())
    with pytest.raises(CheckpointError, match="F8_E4M3"):
        read_checkpoint(path, known_classes())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        read_checkpoint(path, known_classes())


def test_require_fit(tmp_path: Path) -> None:
    state = {"b": torch.ones(2), "a": torch.ones(3, 1), "ema": torch.ones(1)}
    checkpoint = read_checkpoint(pickles.save(tmp_path / "model.th", state), known_classes())
    shapes = {"a": torch.Size([3, 1]), "b": torch.Size([2])}
    assert list(require_fit(shapes, checkpoint, ignore=("ema", "absent"))) == ["a", "b"]
    with pytest.raises(CheckpointError, match=r"1 unexpected, first ema$|1 unexpected, first ema\."):
        require_fit(shapes, checkpoint)
    wrong = {"a": torch.Size([1, 3]), "c": torch.Size([1]), "ema": torch.Size([1])}
    with pytest.raises(CheckpointError) as caught:
        require_fit(wrong, checkpoint)
    for part in ("1 missing, first c", "1 unexpected, first b", "first a: (3, 1) in the file and (1, 3) in"):
        assert part in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three models of a bag, one of each form of name."""
    for name in ("aaaa1111.th", "bbbb2222.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    digest = hashlib.sha256(b"third").hexdigest()
    (tmp_path / f"cccc-3-{digest[:8]}.th").write_bytes(b"third")
    (tmp_path / "aaaa1111-notes.th").write_bytes(b"the name of another signature")
    return tmp_path


LAUGHS = "[&a0 [1]" + "".join(f", &a{n + 1} [" + f"*a{n}, " * 10 + "]" for n in range(12)) + "]"
"""Lists that hold each other: ten to the power of twelve numbers in all."""


def bag(folder: Path, content: str) -> Path:
    path = folder / "bag.yaml"
    path.write_text(content)
    return path


def test_a_bag(folder: Path) -> None:
    content = "models: ['cccc-3', aaaa1111, bbbb2222]\nweights: [[1, 0.], [0, 1], [0, 0]]\nsegment: 44"
    path = bag(folder, content)
    assert [model.name[:4] for model in bag_models(path)] == ["cccc", "aaaa", "bbbb"]
    found = read_bag_file(path)
    assert found.weights == ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0))
    assert found.segment == 44.0
    alone = read_bag_file(bag(folder, "models: [aaaa1111]"))
    assert (alone.weights, alone.segment) == (None, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("models: [dddd4444]", r"dddd4444 is missing.*dddd4444\.th"),
        ("models: [92202414]", r"models\[0\] is 92202414, expected a name, in quotes"),
        ("models: [../aaaa1111]", "signature"),
        ("models: []", "models has 0 entries, expected 1 to 64"),
        ("models: aaaa1111", "models is 'aaaa1111', expected a list"),
        ("weights: []", "bag has no field 'models'"),
        (
            "models: [aaaa1111]\nweight: [[1]]",
            "has an unknown field 'weight', expected models, weights, segment",
        ),
        ("models: [aaaa1111]\nweights: [[1], [1]]", "2 rows, expected one row for each of the 1"),
        ("models: [aaaa1111, bbbb2222]\nweights: [[1, 1], [1]]", "rows of 2, 1 numbers"),
        ("models: [aaaa1111]\nweights: [[one]]", r"weights\[0\]\[0\] is 'one', expected a finite number"),
        ("models: [aaaa1111]\nweights: [[true]]", r"weights\[0\]\[0\] is True, expected a finite number"),
        ("models: [aaaa1111]\nweights: [[.nan]]", r"weights\[0\]\[0\] is nan, expected a finite number"),
        ("models: [aaaa1111]\nweights: [[]]", r"weights\[0\] has 0 entries"),
        ("models: [aaaa1111]\nweights: [[1, 0]]", "source 1 add up to 0"),
        ("models: [aaaa1111]\nsegment: 0", "segment is 0"),
        ("models: [aaaa1111]\nsegment: ten", "segment is 'ten', expected a number of seconds above 0"),
        ("models: [aaaa1111]\nsegment: 0x" + "f" * 9000, "segment is a huge number"),
        ("- 1", r"bag is \[1\], expected an object"),
        ("1: 2\nmodels: [aaaa1111]", "bag is"),
        ("models: [aaaa1111]\nweights: &a [*a]", r"weights\[0\]\[0\] is \["),
        (f"models: [aaaa1111]\nsegment: {LAUGHS}", "segment is"),
        ("models: [", "not YAML"),
        ("a: !!timestamp x", "not YAML"),
        ("[" * 30_000, "not YAML"),
        ("!!python/object/apply:os.system [true]", "not YAML"),
        ("#" * 70_000, "more than"),
    ],
)
def test_bags_with_mistakes(folder: Path, content: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        bag_models(bag(folder, content))
    assert caught.value.message.startswith("bag.yaml")


def test_bags_whose_models_are_not_clear(folder: Path) -> None:
    (folder / "aaaa1111.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"ambiguous: aaaa1111\.safetensors, aaaa1111\.th"):
        bag_models(bag(folder, "models: [aaaa1111]"))
    (folder / "eeee-01234567.th").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"sha256 of eeee-01234567\.th .* expected 01234567"):
        bag_models(bag(folder, "models: [eeee]"))
    with pytest.raises(CheckpointError, match=r"absent\.yaml does not exist"):
        bag_models(folder / "absent.yaml")
