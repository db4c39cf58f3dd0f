"""Which nodes a plan's rules keep in float32. Each rule is a question to the graph's structure, not to names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from mrsep_deploy.precision.graph import ELEMENTWISE, MOVEMENT, PRODUCTS, GraphView
from mrsep_deploy.precision.names import Low
from mrsep_deploy.precision.numbers import rounded, smallest_normal

REDUCTIONS = ("Reduce",)
"""How operators begin that make one number of many."""

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


def kept_by_rules(view: GraphView, rules: Iterable[str], precision: Low, stage: str) -> frozenset[str]:
    """Names of the nodes with a floating-point result that stay in float32."""
    kept: set[str] = set()
    chosen = tuple(rules)
    for name, rule in _RULES.items():
        if name in chosen:
            kept |= rule(view)
    if "constants" in chosen:
        kept |= _lost_constants(view, precision)
    if "transposed" in chosen and precision == "bfloat16":
        kept |= {node.name for node in view.floats() if node.op_type == "ConvTranspose"}
    if "fusion" in chosen and stage == "fusion":
        kept |= {node.name for node in view.floats() if node.op_type not in MOVEMENT}
    # last, because it asks what the other rules keep
    return frozenset(kept | _chains(view, kept) if "chains" in chosen else kept)


def _norms(view: GraphView) -> set[str]:
    """Statistics, what only statistics need, and the elementwise operators that apply them."""
    own = STATISTICAL | ROOTS
    kept = {node.name for node in view.floats() if _is_reduction(node) or node.op_type in own}
    statistics: set[str] = set()
    applied: set[str] = set()
    for node in view.floats():
        data = view.data(node)
        if _is_reduction(node):
            statistics.update(node.output)
        elif node.op_type not in _SPREADING and data and all(name in statistics for name in data):
            # statistics of statistics, down to an epsilon's sum and a square root
            statistics.update(node.output)
            if node.op_type not in MOVEMENT:
                kept.add(node.name)
        elif node.op_type in ELEMENTWISE and _applies(view, node, statistics, applied):
            kept.add(node.name)
            applied.update(node.output)
    return kept | _only_for(view, kept)


def _is_reduction(node: NodeProto) -> bool:
    return node.op_type.startswith(REDUCTIONS)


def _applies(view: GraphView, node: NodeProto, statistics: set[str], applied: set[str]) -> bool:
    data = view.data(node)
    if not data:
        return False
    small = [name for name in data if view.elements(name) * BROADCAST <= view.elements(node.output[0])]
    if any(name in statistics for name in small):
        return True
    return node.op_type in ("Add", "Sub", "Mul") and all(name in applied for name in data)


def _only_for(view: GraphView, kept: set[str]) -> set[str]:
    """Nodes whose every result is only there to be reduced: squares, and the projection before them."""
    found: set[str] = set()
    for node in reversed(view.nodes):
        if node.op_type not in ELEMENTWISE and node.op_type != "Conv":
            continue
        if any(name in view.outputs for name in node.output):
            continue
        users = list(view.users(node))
        if users and all(_is_reduction(user) or user.name in found for user in users):
            found.add(node.name)
    return found - kept


def _attention(view: GraphView) -> set[str]:
    """Softmax; and what a division in linear attention divides, back to the products with weights."""
    kept = {node.name for node in view.floats() if node.op_type in WEIGHING}
    below = [node for node in view.floats() if node.op_type == "Div"]
    while below:
        node = below.pop()
        for source in view.sources(node):
            if source.name in kept and source.op_type != "Div":
                continue
            weighed = source.op_type in PRODUCTS and len(view.data(source)) < 2
            biased = source.op_type == "Add" and is_bias(view, source)
            if not weighed and not biased:
                kept.add(source.name)
                below.append(source)
    return kept


def is_bias(view: GraphView, node: NodeProto) -> bool:
    """Whether an addition is the bias of a product with weights, which engines add before they round.

    A constant added to a product of two computed tensors is none: the epsilon of linear attention's divisor, say.
    """
    data = view.data(node)
    if node.op_type != "Add" or len(data) != 1:
        return False
    source = view.producer.get(data[0])
    return source is not None and source.op_type in PRODUCTS and len(view.data(source)) == 1


def _residual(view: GraphView) -> set[str]:
    sums = (node for node in view.floats() if node.op_type in ("Add", "Sum"))
    return {node.name for node in sums if len(view.data(node)) > 1}


def _chains(view: GraphView, kept: set[str]) -> set[str]:
    """Elementwise operators with an elementwise or float32 neighbour on either side."""
    able = {
        n.name for n in view.floats() if n.op_type in ELEMENTWISE and view.data(n) and not is_bias(view, n)
    }
    found: set[str] = set()
    for node in view.floats():
        if node.name not in able:
            continue
        before, after = list(view.sources(node)), list(view.users(node))
        between = _all_kept(before, kept) and _all_kept(after, kept)
        if between or any(other.name in able for other in (*before, *after)):
            found.add(node.name)
    return found


def _all_kept(nodes: list[NodeProto], kept: set[str]) -> bool:
    return bool(nodes) and all(node.name in kept for node in nodes)


def _last_layer(view: GraphView) -> set[str]:
    """What follows the first products of a stage's last decoder layer: its DConv and transposed convolution.

    A rounding before them is spread over frequencies and channels by what still comes. One in them is not, and
    falls on the sum of all sources, so that it is largest beside the quietest. The first products, by far
    the larger part of the layer's arithmetic, matter little: their own roundings come before.
    """
    upsampling = [node for node in view.floats() if node.op_type == "ConvTranspose"]
    earlier = [node for node in upsampling if any(n.op_type == "ConvTranspose" for n in _after(view, [node]))]
    leading = _names(_before(view, earlier)) | _names(earlier)
    layer = [node for node in _after(view, earlier) if node.name not in leading]
    products = [node for node in layer if node.op_type in PRODUCTS]
    later = _names(_after(view, products))
    return later & _names(layer)


def _names(nodes: Iterable[NodeProto]) -> set[str]:
    return {node.name for node in nodes}


def _after(view: GraphView, nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """All that depends on some nodes."""
    return _reached(nodes, view.users)


def _before(view: GraphView, nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """All that some nodes depend on."""
    return _reached(nodes, view.sources)


def _reached(nodes: Iterable[NodeProto], step: Callable[[NodeProto], Iterable[NodeProto]]) -> list[NodeProto]:
    found: dict[str, NodeProto] = {}
    ahead = [following for node in nodes for following in step(node)]
    while ahead:
        node = ahead.pop()
        if node.name not in found:
            found[node.name] = node
            ahead.extend(step(node))
    return list(found.values())


def _lost_constants(view: GraphView, precision: Low) -> set[str]:
    """Nodes that read a constant which overflows, or whose rounding costs more than a normal number's."""
    found: set[str] = set()
    for name in view.constants:
        if view.is_float(name) and not survives(view.value(name), precision):
            found.update(node.name for node in view.readers(name) if node.op_type not in MOVEMENT)
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
    """How many of a constant's numbers are zero or subnormal in lower precision and were neither before."""
    exact = np.abs(value.astype(np.float64))
    return int(np.count_nonzero((exact > 0) & (exact < smallest_normal(precision))))


_RULES: Mapping[str, Callable[[GraphView], set[str]]] = {
    "norms": _norms,
    "attention": _attention,
    "residual": _residual,
    "last": _last_layer,
}
