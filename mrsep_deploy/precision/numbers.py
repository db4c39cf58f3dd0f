"""float16 and bfloat16 as numbers and as element types of ONNX; NumPy itself has no bfloat16."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mrsep_deploy.precision.names import Low

ELEMENT_TYPES: Mapping[str, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
"""By the names that manifests use."""

LOW_TYPES = frozenset((ir.DataType.FLOAT16, ir.DataType.BFLOAT16))


def rounded(value: NDArray[np.generic], precision: Low) -> NDArray[np.generic]:
    """Rounds numbers to the nearest of lower precision, to even at a tie; beyond its range, to infinity."""
    with np.errstate(over="ignore"):
        return np.asarray(value, np.float32).astype(ELEMENT_TYPES[precision].numpy())


def smallest_normal(precision: Low) -> float:
    """Returns the smallest number that keeps all bits of a precision."""
    # bfloat16 has float32's exponents
    return float(np.finfo(np.float16 if precision == "float16" else np.float32).tiny)
