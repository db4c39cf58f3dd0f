"""Costs of a bundle, counted on the nodes of its ONNX graphs.

The graphs compute what the checkpoint computes, rewritten: the norms folded into DConv take some products
of their own (0.3 % of the trained HTDemucs), and a crop done as padding leaves out elements that the checkpoint's
operators compute and throw away.
"""

from __future__ import annotations

import onnx

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.errors import BundleError
from mrsep_deploy.inspection.costs import ModelCost, StageCost
from mrsep_deploy.precision.graph import PRODUCTS, elements, inferred
from mrsep_deploy.precision.work import node_macs


def bundle_cost(bundle: Bundle) -> ModelCost:
    """Counts the graph stages of a bundle.

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
    graph = inferred(onnx.load_model_from_string(bundle.graph_bytes(stage))).graph
    nodes = [node for node in graph if node.op_type in PRODUCTS]
    for node in nodes:
        for value in (*node.inputs[:2], node.outputs[0]):
            if value is None or value.shape is None or not value.shape.is_static():
                raise BundleError(
                    f"{stage.file} in {bundle.path} does not tell the shape of {value and value.name}, "
                    "expected static shapes",
                    "Export the bundle again.",
                )
    macs = sum(map(node_macs, nodes))
    activations = sum(elements(node.outputs[0]) for node in nodes)
    return StageCost(stage.name, stage.branch, stage.parameters, stage.macs, activations, graph_macs=macs)
