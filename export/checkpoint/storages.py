"""From declared tensors and raw bytes to torch tensors.

Everything a file declares about a tensor is checked against the storage it names before a byte is read.
Storages are read one at a time and let go once the last tensor in them is made, so that a checkpoint of
float32 takes its own size in memory, and one of float16 twice its size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.allowed import DIFFQ_FIX, RESAVE, STORAGES, StorageRef, TensorSpec
from mrsep_deploy.export.checkpoint.values import shown

MAX_TENSORS = 16_384  # the largest published model has about two thousand
MAX_DIMENSIONS = 8
MAX_EXTENT = 2**40
MAX_GROWTH = 4  # bytes of all tensors in memory per byte of the file: 2 for float16, and as much again
SLACK = 2**20  # bytes on top of that, so that small files may repeat a value

DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in STORAGES.values()}

#: Gives the bytes of a storage, exactly ``numel`` elements, in the byte order of this machine.
StorageReader = Callable[[StorageRef], bytearray]


@dataclass(frozen=True)
class Package:
    """What a file holds, and how to read the tensors of the state that it declares.

    Attributes:
        value: the package, or what stands in its place.
        tensors: from its ``state`` to the tensors by name and the dtypes they are stored in.
    """

    value: object
    tensors: Callable[[object], tuple[dict[str, torch.Tensor], set[str]]]


@dataclass(frozen=True)
class _Layout:
    """Where in its storage a tensor lies, in elements; every index is inside the storage."""

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.size)


def is_state(value: object) -> TypeGuard[dict[object, object]]:
    """Whether it is what ``Module.state_dict()`` gives: a dict of tensors, of one at least."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(item, TensorSpec) for item in value.values())


def states_in(package: Mapping[object, object]) -> dict[object, dict[object, object]]:
    """Every state in a package, by its key; each dict is looked through once, under however many keys it is."""
    different = {id(value): value for value in package.values()}
    states = {identity: value for identity, value in different.items() if is_state(value)}
    return {key: states[id(value)] for key, value in package.items() if id(value) in states}


def read_state(
    state: object, read: StorageReader, file_bytes: int
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """The tensors of a package's ``state``, and the dtypes they are stored in.

    Floating point ones are float32, all are on the CPU and contiguous.

    Args:
        state: what the pickle holds: a dict of names and ``TensorSpec``.
        read: gives the bytes of a storage.
        file_bytes: the size of the file; it bounds what the tensors may take in memory.

    Raises:
        CheckpointError: ``state`` holds something else, a tensor reaches outside its storage, has a value
            that is not finite, or all together are absurdly large.
    """
    layouts = _layouts(state)
    total = sum(layout.numel * _width(layout.storage.dtype) for layout in layouts.values())
    limit = MAX_GROWTH * file_bytes + SLACK
    if total > limit:
        raise CheckpointError(
            f"the tensors would take {total:,} bytes in memory, expected at most {limit:,} from a file of "
            f"{file_bytes:,} bytes",
            RESAVE,
        )
    users = Counter(layout.storage.key for layout in layouts.values())
    shared: dict[str, torch.Tensor] = {}
    tensors = {}
    for name, layout in layouts.items():
        key = layout.storage.key
        alone = users[key] == 1 and key not in shared
        if key not in shared:
            shared[key] = _elements(layout.storage, read)
        tensors[name] = finished(name, _view(shared[key], layout, keep=alone))
        users[key] -= 1
        if not users[key]:
            del shared[key]
    return tensors, {layout.storage.dtype for layout in layouts.values()}


def finished(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, as float32 if it is floating point, contiguous, and without NaN and infinity."""
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
    tensor = tensor.contiguous()
    # The extremes of a tensor with NaN in it are NaN; unlike isfinite() they take no memory.
    if tensor.is_floating_point() and tensor.numel():
        low, high = tensor.aminmax()
        if not (math.isfinite(low.item()) and math.isfinite(high.item())):
            raise CheckpointError(
                f"the tensor {shown(name)} has NaN or infinite values in float32, expected finite ones",
                "export a checkpoint from before the training diverged",
            )
    return tensor


def refuse_quantised(names: Iterable[object]) -> None:
    """Raise if a state with these keys is one that demucs wrote through DiffQ."""
    if not {"__quantized", "quantized"}.isdisjoint(names):
        raise CheckpointError(
            "the weights are stored as DiffQ codes, whose decoding needs the diffq package and the model's "
            "own classes; expected plain tensors",
            DIFFQ_FIX,
        )


def _width(dtype: str) -> int:
    return 4 if DTYPES[dtype].is_floating_point else DTYPES[dtype].itemsize


def _layouts(state: object) -> dict[str, _Layout]:
    if not isinstance(state, dict):
        raise CheckpointError(f"state is {type(state).__name__}, expected a dict of tensors", RESAVE)
    refuse_quantised(state)
    if len(state) > MAX_TENSORS:
        raise CheckpointError(f"state has {len(state):,} entries, expected at most {MAX_TENSORS:,}")
    layouts = {}
    for name, spec in state.items():
        if not isinstance(name, str):
            raise CheckpointError(f"state has a key of type {type(name).__name__}, expected names", RESAVE)
        if not isinstance(spec, TensorSpec):
            raise CheckpointError(f"state[{shown(name)}] is {type(spec).__name__}, expected a tensor", RESAVE)
        layouts[name] = _layout(name, spec)
    return layouts


def _layout(name: str, spec: TensorSpec) -> _Layout:
    size, stride = _extents(spec.size), _extents(spec.stride)
    if (
        size is None
        or stride is None
        or len(size) != len(stride)
        or math.prod(filter(None, size)) >= MAX_EXTENT
    ):
        raise CheckpointError(
            f"the tensor {shown(name)} has the size {shown(_brief(spec.size))} and the stride "
            f"{shown(_brief(spec.stride))}, expected at most {MAX_DIMENSIONS} plausible integers each"
        )
    numel = math.prod(size)
    last = sum((count - 1) * step for count, step in zip(size, stride, strict=True)) if numel else -1
    offset = spec.offset
    if type(offset) is not int or offset < 0 or offset + last >= spec.storage.numel:
        raise CheckpointError(
            f"the tensor {shown(name)} reaches outside its storage of {spec.storage.numel:,} elements"
        )
    return _Layout(spec.storage, offset, size, stride)


def _extents(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMENSIONS:
        return None
    if not all(type(item) is int and 0 <= item < MAX_EXTENT for item in value):
        return None
    return tuple(value)


def _brief(value: object) -> object:
    """``value`` for a message: a short sequence of integers in full, else only its type."""
    if isinstance(value, (tuple, list)) and len(value) <= MAX_DIMENSIONS:
        return tuple(item if type(item) is int else type(item).__name__ for item in value)
    return type(value).__name__


def _elements(storage: StorageRef, read: StorageReader) -> torch.Tensor:
    """The whole storage as a tensor of one dimension."""
    dtype = DTYPES[storage.dtype]
    if not storage.numel:
        return torch.empty(0, dtype=dtype)
    if dtype is torch.bool:  # a byte that is neither 0 nor 1 is no bool
        return torch.frombuffer(read(storage), dtype=torch.uint8) != 0
    return torch.frombuffer(read(storage), dtype=dtype)


def _view(elements: torch.Tensor, layout: _Layout, keep: bool) -> torch.Tensor:
    """The tensor in its storage; with ``keep`` it may stay in the storage's memory if it fills it."""
    if layout.numel == 0:
        return torch.empty(layout.size, dtype=elements.dtype)
    view = elements.as_strided(layout.size, layout.stride, layout.offset)
    if keep and layout.numel == elements.numel():
        return view
    return view.clone(memory_format=torch.contiguous_format)
