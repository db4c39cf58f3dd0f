"""Which nodes a plan's rules keep in float32.

The rules here are general: each is a question to the graph's structure, not to names. A model's family adds rules of
its own as data that its bundles carry: patterns of node names, by rule and stage. It may also name a general
rule, without patterns, in the stages where it expects that rule to match.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mrsep_deploy.precision.graph import (
    ELEMENTWISE,
    MOVEMENT,
    PRODUCTS,
    computing,
    data,
    elements,
    floats,
    is_float,
    numbers_of,
    sources,
    users,
)
from mrsep_deploy.precision.names import Low
from mrsep_deploy.precision.numbers import rounded, smallest_normal
from mrsep_deploy.precision.plan import PrecisionPlan

STATISTICAL = frozenset(("LayerNormalization", "InstanceNormalization", "GroupNormalization"))
ROOTS = frozenset(("Sqrt", "Reciprocal", "Pow"))
"""Operators of norms whose results leave half precision's range easily."""

WEIGHING = frozenset(("Softmax", "Exp", "Div"))
"""Operators that make weights of an attention."""

BROADCAST = 4
"""A tensor this many times smaller than what it is applied to is a statistic of it, or a constant."""

MAX_CONSTANT_ERROR: Mapping[Low, float] = {"float16": 2.0**-10, "bfloat16": 2.0**-8}
"""Relative L2 error that rounding a constant may cost: twice the most that a normal number can lose."""

_SPREADING = frozenset(("Expand", "Tile"))
"""Movement after which a statistic is as large as what it is of, and no longer cheap."""

StageRules = Mapping[str, Collection[str]]
"""What a family says of one stage: by rule, patterns of node names; none for a general rule that it expects."""

Nodes = set[ir.Node]
Rule = Callable[[ir.Graph, Low, Nodes], Nodes]
"""The nodes that a rule keeps, of a graph in a precision, where these are kept by the rules before it."""


def kept_by_rules(
    graph: ir.Graph, plan: PrecisionPlan, family: StageRules
) -> tuple[set[str], tuple[str, ...]]:
    """Returns the names of the nodes that a plan's rules keep, and the rules that should match and do not."""
    found: dict[str, Nodes] = {name: _matching(graph, patterns) for name, patterns in family.items()}
    found = {name: nodes for name, nodes in found.items() if name in plan.rules}
    for name, rule in RULES.items():
        if name in plan.rules:
            found[name] = found.get(name, set()) | rule(graph, plan.precision, set().union(*found.values()))
    unmatched = tuple(name for name in family if name in plan.rules and not found[name])
    return {str(node.name) for node in set().union(*found.values())}, unmatched


def _matching(graph: ir.Graph, patterns: Collection[str]) -> Nodes:
    named = {str(node.name): node for node in computing(graph)}
    return {named[name] for pattern in patterns for name in fnmatch.filter(named, pattern)}


def _norms(graph: ir.Graph, _precision: Low, _kept: Nodes) -> Nodes:
    """Norms, from their statistics and epsilons to scale and shift, and what only statistics need."""
    kept = {node for node in floats(graph) if _is_reduction(node) or node.op_type in STATISTICAL | ROOTS}
    statistics: set[ir.Value] = set()
    applied: set[ir.Value] = set()
    for node in floats(graph):
        read = data(node)
        if _is_reduction(node):
            statistics.update(node.outputs)
        elif node.op_type not in _SPREADING and read and statistics.issuperset(read):
            # statistics of statistics, down to an epsilon's sum and a square root
            statistics.update(node.outputs)
            if node.op_type not in MOVEMENT:
                kept.add(node)
        elif node.op_type in ELEMENTWISE and _applies(node, statistics, applied):
            kept.add(node)
            applied.update(node.outputs)
    return kept | _only_for_reductions(graph)


def _is_reduction(node: ir.Node) -> bool:
    return node.op_type.startswith("Reduce")


def _applies(node: ir.Node, statistics: set[ir.Value], applied: set[ir.Value]) -> bool:
    read = data(node)
    small = (value for value in read if elements(value) * BROADCAST <= elements(node.outputs[0]))
    if not statistics.isdisjoint(small):
        return True
    return bool(read) and node.op_type in ("Add", "Sub", "Mul") and applied.issuperset(read)


def _only_for_reductions(graph: ir.Graph) -> Nodes:
    """Nodes whose every result is only there to be reduced: squares, and the projection before them."""
    found: Nodes = set()
    for node in reversed(graph):
        able = node.op_type in ELEMENTWISE or node.op_type == "Conv"
        if able and not any(value.is_graph_output() for value in node.outputs):
            readers = list(users(node))
            if readers and all(_is_reduction(reader) or reader in found for reader in readers):
                found.add(node)
    return found


def _attention(graph: ir.Graph, _precision: Low, _kept: Nodes) -> Nodes:
    """Softmax; and what a division in linear attention divides, back to the products with weights."""
    kept = {node for node in floats(graph) if node.op_type in WEIGHING}
    below = [node for node in kept if node.op_type == "Div"]
    while below:
        node = below.pop()
        for source in sources(node):
            if source in kept and source.op_type != "Div":
                continue
            weighed = source.op_type in PRODUCTS and len(data(source)) < 2
            if not weighed and not is_bias(source):
                kept.add(source)
                below.append(source)
    return kept


def is_bias(node: ir.Node) -> bool:
    """Whether an addition is the bias of a product with weights, which engines add before they round.

    A constant added to a product of two computed tensors is none: the epsilon of linear attention's divisor, say.
    """
    read = data(node)
    if node.op_type != "Add" or len(read) != 1:
        return False
    source = read[0].producer()
    return source is not None and source.op_type in PRODUCTS and len(data(source)) == 1


def _residual(graph: ir.Graph, _precision: Low, _kept: Nodes) -> Nodes:
    """Sums of two computed tensors."""
    return {node for node in floats(graph) if node.op_type in ("Add", "Sum") and len(data(node)) > 1}


def _constants(graph: ir.Graph, precision: Low, _kept: Nodes) -> Nodes:
    """Operators on constants alone, which engines compute once, and those with a constant that overflows, or
    whose rounding costs more than a normal number's."""
    constants = filter(is_float, graph.initializers.values())
    lost = (value for value in constants if not survives(numbers_of(value), precision))
    folded: Nodes = set()
    given = set(graph.inputs)
    for node in graph:
        if not given.isdisjoint(value for value in node.inputs if value is not None):
            given.update(node.outputs)
        elif is_float(node.outputs[0]) and node.op_type not in MOVEMENT:
            folded.add(node)
    return folded | {node for value in lost for node in value.consumers() if node.op_type not in MOVEMENT}


def _transposed(graph: ir.Graph, precision: Low, _kept: Nodes) -> Nodes:
    """In bfloat16, transposed convolutions, which TensorRT for RTX has no kernels for."""
    return {node for node in floats(graph) if node.op_type == "ConvTranspose" and precision == "bfloat16"}


def _chains(graph: ir.Graph, _precision: Low, kept: Nodes) -> Nodes:
    """Elementwise operators with an elementwise or float32 neighbour: they become one kernel and round once."""
    elementwise = (node for node in floats(graph) if node.op_type in ELEMENTWISE)
    able = {node for node in elementwise if data(node) and not is_bias(node)}
    found: Nodes = set()
    for node in able:
        before, after = set(sources(node)), set(users(node))
        between = bool(before) and bool(after) and before | after <= kept
        if between or not able.isdisjoint(before | after):
            found.add(node)
    return found


def survives(value: NDArray[np.generic], precision: Low) -> bool:
    """Whether a constant is nearly the same in lower precision."""
    exact = value.astype(np.float64)
    low = rounded(value, precision).astype(np.float64)
    if not np.isfinite(low).all():
        return not np.isfinite(exact).all()
    size = float(np.linalg.norm(exact))
    return float(np.linalg.norm(low - exact)) <= MAX_CONSTANT_ERROR[precision] * size


def flushed(value: NDArray[np.generic], precision: Low) -> int:
    """Counts the numbers of a constant that are zero or subnormal in lower precision and were neither before."""
    exact = np.abs(value.astype(np.float64))
    return int(np.count_nonzero((exact > 0) & (exact < smallest_normal(precision))))


RULES: Mapping[str, Rule] = {
    "norms": _norms,
    "attention": _attention,
    "residual": _residual,
    "constants": _constants,
    "transposed": _transposed,
    # last, because it asks what all others keep
    "chains": _chains,
}
"""The general rules, in the order in which they are asked; ``plan.GENERAL`` names them for readers of plans."""
