"""The type of every node: given for those that compute, and following from their data for those that move it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from mrsep_deploy.precision.graph import MOVEMENT, data, elements, is_float

FLOAT = ir.DataType.FLOAT

_FIXED = frozenset(("Cast", "Constant", "ConstantOfShape", "EyeLike", "Range", "RandomNormal"))
"""Operators whose result has a type of its own, whatever they read."""

Types = Mapping[str, ir.DataType]
"""Element types by name."""


def node_types(
    graph: ir.Graph, kept: Collection[str], low: ir.DataType, inputs: Types, outputs: Types
) -> Types:
    """Returns the element type of every node, by its name.

    Args:
        graph: in float32.
        kept: names of the nodes that compute in float32.
        low: the type of all others.
        inputs, outputs: types of the graph's floating-point inputs and outputs.

    Movement takes the type of what it moves, or of all that reads it: whichever lets a cast stand where
    there is less to cast, and at a tie the lower one.
    """

    def computed(node: ir.Node) -> ir.DataType:
        fixed = node.name in kept or node.op_type in _FIXED or not is_float(node.outputs[0])
        return FLOAT if fixed else low

    types = {str(node.name): computed(node) for node in graph if not _moves(node)}
    wanted: dict[ir.Node, set[ir.DataType]] = {}
    for node in reversed(graph):
        if _moves(node):
            # through all movement after it
            wanted[node] = {outputs[str(value.name)] for value in node.outputs if value.is_graph_output()}
            for reader in node.successors():
                wanted[node] |= wanted[reader] if _moves(reader) else {types[str(reader.name)]}
    found: dict[str, ir.DataType] = dict(inputs)
    for node in graph:
        if _moves(node):
            types[str(node.name)] = _moving_type(node, found, wanted[node], low)
        found |= {str(value.name): types[str(node.name)] for value in node.outputs}
    return types


def _moves(node: ir.Node) -> bool:
    return node.op_type in MOVEMENT and is_float(node.outputs[0])


def _moving_type(node: ir.Node, found: Types, wanted: set[ir.DataType], low: ir.DataType) -> ir.DataType:
    moved = data(node)
    given = {found[str(value.name)] for value in moved}
    if len(wanted) != 1:
        return given.pop() if len(given) == 1 else FLOAT
    target = next(iter(wanted))
    if len(given) != 1 or given == {target}:
        return target
    before, after = (sum(map(elements, values)) for values in (moved, node.outputs))
    if before == after:
        return low
    return given.pop() if after < before else target
