"""Costs of a bundle, counted on the nodes of its ONNX graphs.

The graphs compute what the checkpoint computes, rewritten: the norms folded into DConv take some products
of their own (0.3 % of the trained HTDemucs), and a crop done as padding leaves out elements that the checkpoint's
operators compute and throw away.
"""

from __future__ import annotations

import math

import onnx
from onnx import ModelProto
from onnx.shape_inference import infer_shapes

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.errors import BundleError
from mrsep_deploy.inspection.complexity import ModelCost, StageCost
from mrsep_deploy.precision.work import node_macs

COUNTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators that multiply and accumulate; what torch's exporter makes of the network has no other."""


def bundle_cost(bundle: Bundle) -> ModelCost:
    """Count the graph stages of a bundle.

    Parameters and MACs are the manifest's, which the export counted on the model; MACs in graphs and activations
    are counted here.

    Raises:
        BundleError: a graph is damaged, or its shapes are not static.
    """
    manifest = bundle.manifest
    return ModelCost(
        kind="bundle",
        name=manifest.name,
        family=manifest.model.family,
        segment=float(manifest.model.segment),
        parameters=manifest.model.parameters,
        stages=tuple(_stage_cost(bundle, stage) for stage in manifest.graph_stages),
    )


def _stage_cost(bundle: Bundle, stage: Stage) -> StageCost:
    graph = infer_shapes(onnx.load_from_string(bundle.graph_bytes(stage)), strict_mode=True)
    shapes = _shapes(graph)
    nodes = [node for node in graph.graph.node if node.op_type in COUNTED]
    unknown = sorted({t for n in nodes for t in (*n.input[:2], n.output[0]) if t not in shapes})
    if unknown:
        raise BundleError(
            f"{stage.file} in {bundle.path} does not tell the shape of {unknown[0]}, expected static shapes",
            "Export the bundle again.",
        )
    batch = bundle.manifest.batch
    macs = sum(node_macs(node, shapes) for node in nodes)
    elements = sum(math.prod(shapes[node.output[0]]) for node in nodes)
    return StageCost(
        stage.name, stage.branch, stage.parameters, stage.macs, elements // batch, graph_macs=macs // batch
    )


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that is static."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in sizes):
            shapes[value.name] = tuple(size.dim_value for size in sizes)
    return shapes
