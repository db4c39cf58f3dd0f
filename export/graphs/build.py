"""Builds an ONNX graph node by node, for any batch, with every constant stored once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from mrsep_deploy.bundle.manifest import BATCH, TensorSpec
from mrsep_deploy.export.graphs.trace import OPSET


class GraphBuilder:
    """Collects nodes and constants; every method adds one node and returns the name of its result.

        >>> graph = GraphBuilder("double")                                    # doctest: +SKIP
        >>> graph.op("Add", "x", "x", output="y")                             # doctest: +SKIP
        >>> data = graph.serialise([TensorSpec("x", (1, 2))], [TensorSpec("y", (1, 2))])   # doctest: +SKIP

    Args:
        name: of the graph.

    Attributes:
        scope: what is computed now; the first part of the names of nodes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.scope = ""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._constant_names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._counts: Counter[str] = Counter()

    def op(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node of one output, which is named after the node unless ``output`` is given."""
        name = self._fresh(f"{self.scope}/{operator}" if self.scope else operator)
        # "/" is in no tensor's name that passes between stages, so this cannot collide with them
        result = output if output is not None else f"/{name}"
        self._nodes.append(helper.make_node(operator, inputs, [result], name=name, **attributes))
        return result

    def constant(self, value: NDArray[Any], what: str) -> str:
        """A constant, named after what it is; equal ones are stored once."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constant_names:
            name = f"/{self._fresh(f'constant/{what}')}"
            self._constant_names[key] = name
            self._constants.append(numpy_helper.from_array(value, name))
        return self._constant_names[key]

    def number(self, value: float, what: str) -> str:
        """A float32 scalar."""
        return self.constant(np.array(value, np.float32), what)

    def integers(self, *values: int) -> str:
        """An int64 vector: a shape, axes, bounds."""
        return self.constant(np.array(values, np.int64), "integers")

    def reshape(self, x: str, *item: int, output: str | None = None) -> str:
        """``[R, *item]``, with as many rows ``R`` as there are; they are items of the batch, or parts of such."""
        return self.op("Reshape", x, self.integers(-1, *item), output=output)

    def product(self, matrix: NDArray[Any], x: str, what: str) -> str:
        """``matrix @ x`` for every row, or item, of ``x``."""
        return self.op("MatMul", self.constant(matrix[None], what), x)

    def added(self, terms: Sequence[str]) -> str:
        """The sum of tensors; of a single one, itself."""
        return reduce(lambda a, b: self.op("Add", a, b), terms)

    def slice(self, x: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        """``x[start:stop:step]`` along one axis, with the rules of ONNX for a negative step."""
        bounds = (self.integers(value) for value in (start, stop, axis, step))
        return self.op("Slice", x, *bounds)

    def pad_last(self, x: str, dims: int, before: int, after: int) -> str:
        """Zeros around the last of ``dims`` axes."""
        others = (0,) * (dims - 1)
        return self.pad(x, (*others, before), (*others, after))

    def pad(self, x: str, before: Sequence[int], after: Sequence[int]) -> str:
        """Zeros before and after, one number each for every axis."""
        pads = (*before, *after)
        return self.op("Pad", x, self.integers(*pads), self.number(0, "zero"), mode="constant")

    def serialise(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
        """The finished model; its nodes' shapes must agree with those of its ends (``onnx.checker``).

        The first dimension of the ends is the batch.
        """
        graph = helper.make_graph(
            self._nodes, self.name, [_value(t) for t in inputs], [_value(t) for t in outputs], self._constants
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(
            graph,
            opset_imports=[opset],
            ir_version=helper.find_min_ir_version_for([opset]),
            producer_name="mrsep-deploy",
        )
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def _fresh(self, base: str) -> str:
        self._counts[base] += 1
        return base if self._counts[base] == 1 else f"{base}_{self._counts[base]}"


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, dtype, (BATCH, *spec.shape[1:]))
