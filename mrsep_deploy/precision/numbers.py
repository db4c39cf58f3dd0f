"""float16 and bfloat16 as numbers and as ONNX tensors; NumPy itself has no bfloat16."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from mrsep_deploy.precision.names import Low

ELEMENT_TYPES: Mapping[str, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
"""ONNX's number of an element type, by the name manifests use."""

LOW_TYPES = frozenset((TensorProto.FLOAT16, TensorProto.BFLOAT16))

_NAMES: Mapping[int, str] = {kind: name for name, kind in ELEMENT_TYPES.items()}


def type_name(kind: int) -> str:
    """``float16`` for ONNX's 10."""
    return _NAMES[kind]


def item_bytes(kind: int) -> int:
    """Bytes of one element of a type that graphs hold."""
    return 2 if kind in LOW_TYPES else 8 if kind in (TensorProto.INT64, TensorProto.DOUBLE) else 4


def rounded(value: NDArray[np.generic], precision: Low) -> NDArray[np.generic]:
    """Numbers rounded to the nearest of lower precision, to even at a tie; beyond its range, infinite."""
    with np.errstate(over="ignore"):
        kind = np.float16 if precision == "float16" else ml_dtypes.bfloat16
        return np.asarray(value, np.float32).astype(kind)


def low_tensor(tensor: TensorProto, name: str, precision: Low) -> TensorProto:
    """A float32 initialiser in lower precision."""
    return numpy_helper.from_array(rounded(numpy_helper.to_array(tensor), precision), name)


def smallest_normal(precision: Low) -> float:
    """The smallest number of full precision."""
    # bfloat16 has float32's exponents
    return float(np.finfo(np.float16 if precision == "float16" else np.float32).tiny)
