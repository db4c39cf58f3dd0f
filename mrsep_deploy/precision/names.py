"""The names of precisions: as users ask for them, as engines know them, and the element types they stand for.

fp32    the float32 bundle as exported
fp16    float16, with what the default plan's rules name in float32
bf16    bfloat16, likewise
mixed   what a plan says: the rules, and further nodes in float32
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from mrsep_deploy.errors import UsageError

if TYPE_CHECKING:
    from mrsep_deploy.bundle.manifest import Manifest

Precision = Literal["fp32", "fp16", "bf16"]
AskedPrecision = Literal["fp32", "fp16", "bf16", "mixed"]
Low = Literal["float16", "bfloat16"]
Accumulation = Literal["float32", "float16"]
"""In what products of float16 add up, where a CPU emulates them."""

ASKED: tuple[AskedPrecision, ...] = ("fp32", "fp16", "bf16", "mixed")
ACCUMULATIONS: tuple[Accumulation, ...] = ("float32", "float16")
ELEMENTS: Mapping[str, Low] = {"fp16": "float16", "bf16": "bfloat16"}
"""Element types of what is asked for below float32."""
ARITHMETIC: Mapping[str, Precision] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""What engines call an element type."""


def arithmetic(manifest: Manifest) -> Precision:
    """Returns what engines call the precision of a bundle's graphs.

    Raises:
        UsageError: engines do not know it.
    """
    if manifest.precision not in ARITHMETIC:
        raise UsageError(
            f"{manifest.name} is of precision {manifest.precision}, expected one of {', '.join(ARITHMETIC)}",
            "Export the checkpoint again.",
        )
    return ARITHMETIC[manifest.precision]
