"""The opset of bfloat16: graphs get its number where every operator means the same in it."""

from __future__ import annotations

import onnx_ir as ir
from onnx import defs

from mrsep_deploy.errors import BundleError

BFLOAT16_OPSET, BFLOAT16_IR = 22, 10
"""The first opset, and the format it is written in, whose convolutions take bfloat16."""

WIDENED = {
    **dict.fromkeys(("GlobalAveragePool", "Softplus", "Softsign"), 1),
    **dict.fromkeys(("Elu", "HardSigmoid", "InstanceNormalization", "Selu"), 6),
    **dict.fromkeys(("Cos", "Sin"), 7),
    **dict.fromkeys(("Conv", "ConvTranspose"), 11),
    **dict.fromkeys(("Cast", "Constant", "Flatten", "Identity", "Pad"), 13),
    **dict.fromkeys(("GRU", "HardSwish", "LSTM", "Reshape", "RNN"), 14),
    **dict.fromkeys(("Shape", "Squeeze", "Transpose", "Unsqueeze"), 13),
    **dict.fromkeys(("ConstantOfShape",), 9),
    **dict.fromkeys(("Mish",), 18),
}
"""Operators whose newer versions, up to that of the opset, take more types or more optional inputs and no more, from
this version on: read from ONNX's changelog, operator by operator. ``AveragePool``, say, is none: with ``ceil_mode``,
windows that begin in the padding do not count any more."""


def relabel(model: ir.Model, stage: str) -> None:
    """Declares a graph to be of ``BFLOAT16_OPSET``.

    Raises:
        BundleError: an operator is not known to mean the same in it; the message names the stage and the operator.
    """
    given = model.opset_imports.get("", BFLOAT16_OPSET)
    for node in model.graph:
        if node.domain not in ("", "ai.onnx") or not _same(node.op_type, given):
            raise BundleError(
                f"stage {stage} has an operator {node.op_type} of opset {given} at the node {node.name}, which is not "
                f"known to mean the same in opset {BFLOAT16_OPSET}, that of bfloat16",
                "Choose --precision fp16, or export the checkpoint again.",
            )
    model.opset_imports[""] = max(given, BFLOAT16_OPSET)
    model.ir_version = max(model.ir_version, BFLOAT16_IR)


def _same(operator: str, opset: int) -> bool:
    """Whether an operator's definition did not change after an opset, or only took in more."""
    if opset >= BFLOAT16_OPSET:
        return True
    try:
        old, new = (
            defs.get_schema(operator, version, "").since_version for version in (opset, BFLOAT16_OPSET)
        )
    except defs.SchemaError:
        return False
    return old == new or old >= WIDENED.get(operator, new)
