"""Reads trained checkpoints, also of unknown origin, without running anything that is in them.

A package names its model class, the arguments it was made with and its parameters. The class is only ever a
name here: no module is imported for it. See ``allowed`` for what a file may ask for, ``containers`` for the
kinds of files and ``bags`` for several models used as one.

    >>> checkpoint = read_checkpoint("955717e8-8726e21a.th", known_classes())   # doctest: +SKIP
    >>> checkpoint.klass, checkpoint.kwargs["segment"]                          # doctest: +SKIP
    ('demucs.htdemucs.HTDemucs', Fraction(39, 5))
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import torch

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint import recipes
from mrsep_deploy.export.checkpoint.allowed import RESAVE, Name, TensorSpec, unknown_class
from mrsep_deploy.export.checkpoint.containers import read_legacy, read_zip
from mrsep_deploy.export.checkpoint.files import AGAIN, about, opened, refuse_other_files, sha256
from mrsep_deploy.export.checkpoint.safetensors_file import looks_like_safetensors, read_safetensors
from mrsep_deploy.export.checkpoint.storages import Package, is_state, refuse_quantised, states_in
from mrsep_deploy.export.checkpoint.values import plain, plain_dict, shown

MAX_FILE = 4 * 2**30  # bytes; the largest published package has about 0.4e9
_PACKAGE = "expected a package with klass, args, kwargs, state"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model as its package describes it.

    Attributes:
        klass: qualified name of the class as in the file, one of those known; empty for a bare state dict.
        args: positional constructor arguments.
        kwargs: named ones, in plain values; ``segment`` may be a ``Fraction``.
        state: parameters and buffers by name, on the CPU, contiguous, each with memory of its own; floating
            point ones as float32 however they are stored, integers as they are.
        training_args: what the training script noted down; empty if nothing.
        path: the file.
        sha256: of the whole file, 64 hexadecimal digits.
        storage_dtypes: the dtypes the state is stored in, sorted, such as ``("float16",)``.
    """

    klass: str
    args: tuple[object, ...]
    kwargs: dict[str, object]
    state: dict[str, torch.Tensor]
    training_args: dict[str, object]
    path: Path
    sha256: str
    storage_dtypes: tuple[str, ...]


def read_checkpoint(path: str | os.PathLike[str], classes: Collection[str], bare: bool = False) -> Checkpoint:
    """Read a package: an archive or an older file of ``torch.save``, or a safetensors file.

    What kind of file it is, its first bytes tell, not its name. Takes as much memory as the parameters take
    in float32, and at most four times the size of the file.

    Args:
        path: the file.
        classes: qualified names of the model classes that are known.
        bare: a state dict without a class and arguments is read, too, alone or under one of its usual names
            (``state_dict``, ``model``, ...); wrappers of the model (``module.``) are taken off its names.

    Raises:
        UnsafeCheckpointError: the file asks for code to be imported or called; the message says which.
        CheckpointError: it is missing, damaged, of another kind, or its model is of an unknown class.
    """
    path = Path(path)
    with about(path), opened(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        if file_bytes > MAX_FILE:
            raise CheckpointError(f"the file has {file_bytes:,} bytes, expected at most {MAX_FILE:,}")
        digest = sha256(file)
        head = file.read(512)
        file.seek(0)
        refuse_other_files(head)
        package = _package(path, classes, file, head, file_bytes, bare)
        state_dict = _bare_state(package.value) if bare else None
        if state_dict is not None:
            state, dtypes = package.tensors(state_dict)
            wrapper = recipes.wrapper(state)
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
            return Checkpoint("", (), {}, state, {}, path, digest, tuple(sorted(dtypes)))
        root = _package_dict(package.value, path)
        named = root["klass"]
        klass = named.qualified if isinstance(named, Name) else named
        if not isinstance(klass, str) or klass not in classes:
            raise unknown_class(klass if isinstance(klass, str) else f"a {type(klass).__name__}", classes)
        args = plain(root["args"], "args")
        if not isinstance(args, (list, tuple)):
            raise CheckpointError(f"args is {type(args).__name__}, expected a list of arguments", RESAVE)
        kwargs = plain_dict(root["kwargs"], "kwargs")
        training_args = plain_dict(root.get("training_args") or {}, "training_args")
        state, dtypes = package.tensors(root["state"])
    return Checkpoint(klass, tuple(args), kwargs, state, training_args, path, digest, tuple(sorted(dtypes)))


def require_fit(
    expected: Mapping[str, torch.Size], checkpoint: Checkpoint, ignore: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """The parameters of ``checkpoint`` that a model expects, by name and in the model's order.

    Args:
        expected: name and shape of every parameter and buffer of the model.
        ignore: names that the checkpoint may have beyond those, such as state of the training.

    Raises:
        CheckpointError: a name is missing, unexpected, or has another shape.
    """
    state = checkpoint.state
    misshapen = [name for name in expected if name in state and state[name].shape != expected[name]]
    wrong = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected and name not in ignore],
        "of another shape": misshapen,
    }
    found = [f"{len(names)} {what}, first {shown(names[0])}" for what, names in wrong.items() if names]
    if misshapen:
        first = misshapen[0]
        found[-1] += f": {tuple(state[first].shape)} in the file and {tuple(expected[first])} in the model"
    if found:
        raise CheckpointError(
            f"{checkpoint.path.name}: the parameters do not fit {checkpoint.klass} with its arguments "
            f"({len(state)} in the file, {len(expected)} expected): {'; '.join(found)}",
            "export the checkpoint with the arguments it was trained with, or report this variant",
        )
    return {name: state[name] for name in expected}


def _package(
    path: Path, classes: Collection[str], file: BufferedReader, head: bytes, file_bytes: int, bare: bool
) -> Package:
    if looks_like_safetensors(head, file_bytes) or (path.suffix == ".safetensors" and head[:2] != b"PK"):
        return read_safetensors(path, head, file_bytes, bare)
    if head.startswith(b"PK\x03\x04"):
        return read_zip(file, file_bytes, classes)
    if head.startswith((b"\x80", b"c", b"(")):  # how the pickles of protocol 2 and 0 begin
        return read_legacy(file, file_bytes, classes)
    raise CheckpointError(f"truncated or not a torch package: it starts with {shown(head[:8])}", AGAIN)


def _bare_state(value: object) -> object | None:
    """The state dict that a file holds without a class: all of the file, or what lies in it under a usual name."""
    if isinstance(value, list):  # the names in a safetensors file
        return value
    if not isinstance(value, dict) or "klass" in value:
        return None
    if is_state(value):
        return value
    states = states_in(value)
    return next((states[name] for name in recipes.USUAL if name in states), None)


def _package_dict(value: object, path: Path) -> dict[object, object]:
    """The package that a file holds; the state may be under another name, if the file has no second one."""
    if isinstance(value, TensorSpec):
        raise CheckpointError(f"the file holds a single tensor, {_PACKAGE}", RESAVE)
    if not isinstance(value, dict):
        found = (
            f"only the name {value}" if isinstance(value, Name) else f"a value of type {type(value).__name__}"
        )
        raise CheckpointError(f"the file holds {found}, {_PACKAGE}", RESAVE)
    missing = [key for key in ("klass", "args", "kwargs", "state") if key not in value]
    if not missing:
        return value
    refuse_quantised(value)
    states = states_in(value)
    if missing == ["state"] and len(states) == 1:
        return {**value, "state": next(iter(states.values()))}
    if is_state(value):
        raise CheckpointError(
            f"the file holds a bare state dict; {_PACKAGE}", recipes.of_a_state(value, path)
        )
    keys = ", ".join(shown(key, 40) for key in list(value)[:6]) or "nothing"
    raise CheckpointError(
        f"the file lacks {', '.join(missing)} (it has {keys}); {_PACKAGE}",
        recipes.of_a_training(states, path) if states else RESAVE,
    )
