"""Tensors on either side of a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.devices.interface import DeviceTensor, TensorView
from mrsep_deploy.errors import EngineError


def check_copy(target: TensorView, source: TensorView) -> int:
    """Bytes to copy, if the two fit."""
    if target.nbytes != source.nbytes:
        raise EngineError(f"a copy of {source.nbytes} bytes was asked for into {target.nbytes} bytes")
    for tensor in (target, source):
        if isinstance(tensor, np.ndarray) and not tensor.flags.c_contiguous:
            raise EngineError(f"a copy needs a contiguous array, found strides {tensor.strides}")
    return target.nbytes


def as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """A contiguous array's memory."""
    return array.reshape(-1).view(np.uint8)


def address(tensor: TensorView) -> int:
    """Where a tensor lies."""
    return tensor.pointer if isinstance(tensor, DeviceTensor) else int(tensor.ctypes.data)
