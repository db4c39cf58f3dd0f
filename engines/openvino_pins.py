"""What stays in float32 of a stage that OpenVINO computes in bfloat16.

OpenVINO takes a float32 model and lowers it itself, so it is given the float32 graph. What must not be lowered, the
graph of lower precision says: there, every tensor has a type. The operators that make its float32 tensors are marked in
the float32 model. OpenVINO reads such marks out of files only, so the model goes through one.
"""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mrsep_deploy.errors import EngineError
from mrsep_deploy.process.libraries import library

MARK = {"name": "precise", "version": "0"}
"""The attribute of a layer whose precision stays as it is."""
READ_AS = ("DisablePrecisionConversion_0", "precise_0")
"""What OpenVINO calls that attribute once it is read, since 2026.4 and before."""

CAST = ".bfloat16"
"""What conversion puts behind the name of a tensor that it gives a low form."""
_NO_OPERATORS = ("Parameter", "Constant", "Result")


def low_tensors(typed: Any) -> frozenset[str]:
    """The tensors that a model with types computes in bfloat16, by their names in the float32 graph."""
    low = {name for name, kind in _named(typed) if kind == "bf16"}
    return frozenset(name.partition(CAST)[0] for name in low)


def pinned(core: Any, model: Any, low: frozenset[str]) -> Any:
    """The float32 ``model`` with everything marked but what makes the tensors ``low``.

    Raises:
        EngineError: this OpenVINO does not know the mark.
    """
    kept = {operator.get_friendly_name() for operator in _kept(model, low)}
    if not kept:
        return model
    with tempfile.TemporaryDirectory(prefix="mrsep-deploy-openvino-") as folder:
        graph, weights = Path(folder) / "stage.xml", Path(folder) / "stage.bin"
        library("openvino").serialize(model, graph, weights)
        tree = ElementTree.parse(graph)
        for layer in tree.iter("layer"):
            if layer.get("name") in kept and layer.get("type") != "Const":
                _mark(layer)
        numbers = library("openvino").Tensor(np.fromfile(weights, np.uint8))
        marked = core.read_model(ElementTree.tostring(tree.getroot()), numbers)
    found = [each for each in _operators(marked) if each.get_friendly_name() in kept]
    if not found or any(not any(name in each.get_rt_info() for name in READ_AS) for each in found):
        raise EngineError(
            f"OpenVINO {library('openvino').__version__} does not keep operators in float32, which bfloat16 needs",
            'Run pip install "openvino>=2026.4", or choose --precision fp32.',
        )
    return marked


def _kept(model: Any, low: frozenset[str]) -> Iterator[Any]:
    """The operators that stay. One without a name that the graph knows belongs to the operator that reads it."""
    is_low: dict[str, bool] = {}
    for operator in reversed(_operators(model)):
        name = operator.get_friendly_name()
        names = {name for output in operator.outputs() for name in output.get_names()}
        if names:
            is_low[name] = not names.isdisjoint(low)
        else:
            readers = (end.get_node() for output in operator.outputs() for end in output.get_target_inputs())
            is_low[name] = any(is_low.get(reader.get_friendly_name(), False) for reader in readers)
        if not is_low[name]:
            yield operator


def _operators(model: Any) -> list[Any]:
    return [each for each in model.get_ordered_ops() if each.get_type_name() not in _NO_OPERATORS]


def _named(model: Any) -> Iterator[tuple[str, str]]:
    """Every tensor that an operator makes, by name, and its element type."""
    for operator in _operators(model):
        for output in operator.outputs():
            for name in output.get_names():
                yield name, output.get_element_type().to_string()


def _mark(layer: ElementTree.Element) -> None:
    info = layer.find("rt_info")
    if info is None:
        info = ElementTree.Element("rt_info")
        # a layer's parts have an order: data, information, inputs, outputs
        place = next((n for n, part in enumerate(layer) if part.tag in ("input", "output")), len(layer))
        layer.insert(place, info)
    ElementTree.SubElement(info, "attribute", MARK)
