"""Hazards planted in float32 bundles: each leaves the float32 function as it is and breaks float16.

A bundle's graph is edited and written to a place of its own. What is planted is called ``planted.*``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper

from mrsep_deploy.bundle import Bundle, write_bundle

LOUD = 512.0
EPSILON = 1e-8
GAIN = 1e3


def edited(bundle: Bundle, stage: str, edit: Callable[[GraphProto], None], target: Path) -> Bundle:
    """The bundle with one stage's graph changed, at another place."""
    files = {s.file: bundle.graph_bytes(s) for s in bundle.manifest.stages if s.file is not None}
    model = onnx.load_from_string(files[f"{stage}.onnx"])
    edit(model.graph)
    onnx.checker.check_model(model, full_check=True)
    files[f"{stage}.onnx"] = model.SerializeToString()
    return write_bundle(target, bundle.manifest, files, overwrite=False)


def loud_norm(graph: GraphProto) -> None:
    """What goes into the first norm is ``LOUD`` times as loud; the norm makes that good again.

    In float16 its squares are infinite.
    """
    conv = node(graph, "encoder.0.dconv.layers.0.conv/Conv")
    for name in conv.input[1:]:
        scale(graph, name, LOUD)


def tiny_epsilon(graph: GraphProto) -> None:
    """The waveform is divided by its own RMS, which is one but for silence; there ``EPSILON`` alone counts.

    In float16 it is zero, and silence is divided by it.
    """
    source = graph.input[0].name
    constant(graph, "planted.epsilon", np.array(EPSILON, np.float32))
    constant(graph, "planted.axes", np.array([1, 2], np.int64))
    made = [
        helper.make_node("Mul", [source, source], ["planted.square"], "planted/Square"),
        helper.make_node("ReduceMean", ["planted.square", "planted.axes"], ["planted.mean"], "planted/Mean"),
        helper.make_node("Add", ["planted.mean", "planted.epsilon"], ["planted.sum"], "planted/Add"),
        helper.make_node("Sqrt", ["planted.sum"], ["planted.root"], "planted/Sqrt"),
        helper.make_node("Reciprocal", ["planted.root"], ["planted.inverse"], "planted/Reciprocal"),
        helper.make_node("Mul", [source, "planted.inverse"], ["planted.waveform"], "planted/Scale"),
    ]
    redirect(graph, source, "planted.waveform")
    insert(graph, 0, made)


def saturating_gain(graph: GraphProto) -> None:
    """A GLU of a decoder is amplified by ``GAIN``, and brought back behind it. In float16 it saturates."""
    value, glu = node(graph, "tdecoder.1.glu.value/Conv"), node(graph, "tdecoder.1.glu/Mul")
    for name in value.input[1:]:
        scale(graph, name, 128.0)
    for name, number in (("gain", GAIN), ("undo", 1 / GAIN), ("unscale", 1 / 128)):
        constant(graph, f"planted.{name}", np.array(number, np.float32))
    redirect(graph, glu.output[0], "planted.restored")
    redirect(graph, value.output[0], "planted.loud")
    after = [
        helper.make_node("Mul", [glu.output[0], "planted.unscale"], ["planted.scaled"], "planted/Unscale"),
        helper.make_node("Mul", ["planted.scaled", "planted.undo"], ["planted.restored"], "planted/Undo"),
    ]
    before = helper.make_node("Mul", [value.output[0], "planted.gain"], ["planted.loud"], "planted/Gain")
    insert(graph, position(graph, glu) + 1, after)
    insert(graph, position(graph, value) + 1, [before])


def overflowing_divisor(graph: GraphProto) -> None:
    """A divisor of linear attention is ``LOUD**2`` as large, and so is what comes out; powers of two round nothing.

    In float16 it is infinite and the quotient zero, so that every number that leaves the stage is finite.
    """
    division = next(each for each in graph.node if each.op_type == "Div")
    constant(graph, "planted.loud", np.array(LOUD, np.float32))
    at, divisor, quotient = position(graph, division), division.input[1], division.output[0]
    redirect(graph, quotient, "planted.restored")
    division.input[1] = "planted.divisor"
    after = [
        helper.make_node("Mul", [quotient, "planted.loud"], ["planted.louder"], "planted/Louder"),
        helper.make_node("Mul", ["planted.louder", "planted.loud"], ["planted.restored"], "planted/Restored"),
    ]
    before = [
        helper.make_node("Mul", [divisor, "planted.loud"], ["planted.sum"], "planted/Sum"),
        helper.make_node("Mul", ["planted.sum", "planted.loud"], ["planted.divisor"], "planted/Divisor"),
    ]
    insert(graph, at + 1, after)
    insert(graph, at, before)


# --- editing graphs


def node(graph: GraphProto, name: str) -> NodeProto:
    return next(each for each in graph.node if each.name == name)


def position(graph: GraphProto, wanted: NodeProto) -> int:
    return next(index for index, each in enumerate(graph.node) if each.name == wanted.name)


def constant(graph: GraphProto, name: str, value: NDArray[np.generic]) -> None:
    graph.initializer.append(numpy_helper.from_array(value, name))


def scale(graph: GraphProto, name: str, factor: float) -> None:
    """Multiply a constant."""
    tensor = next(each for each in graph.initializer if each.name == name)
    scaled = (numpy_helper.to_array(tensor) * np.float32(factor)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(scaled, name))


def redirect(graph: GraphProto, old: str, new: str) -> None:
    """Let every reader of a tensor read another one."""
    for each in graph.node:
        for index, name in enumerate(each.input):
            if name == old:
                each.input[index] = new


def insert(graph: GraphProto, at: int, made: Sequence[NodeProto]) -> None:
    nodes = [*graph.node[:at], *made, *graph.node[at:]]
    del graph.node[:]
    graph.node.extend(nodes)
