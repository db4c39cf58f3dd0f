"""One part as an ONNX graph: torch's exporter, then a clean file that says nothing of this machine."""

from __future__ import annotations

import ast
import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mrsep_deploy.errors import ExportError, first_line
from mrsep_deploy.export.graphs.batch import TRACED, name_batch

OPSET = 20
"""Read by ONNX Runtime, OpenVINO and TensorRT from 10.9: Gelu is one operator (20), and there is no
GroupNormalization (21), which TensorRT 10.16 has computed as instance norm."""


def export_graph(
    part: nn.Module,
    inputs: Sequence[Tensor],
    stage: str,
    names: tuple[Sequence[str], Sequence[str]],
    opset: int = OPSET,
) -> bytes:
    """Export one part for any batch; all other shapes are static.

    Args:
        part: the module to trace, in evaluation mode.
        inputs: tensors of the shapes it will run at, for a batch of one.
        stage: its name, for the graph and for errors.
        names: of inputs and outputs.
        opset: of the graph.

    Returns:
        A self-contained ONNX model, whose inputs and outputs have ``batch`` for their first dimension.

    Raises:
        ExportError: torch cannot trace it, or the result is no valid graph of this kind.
    """
    try:
        with _quiet(), _one_registry(), torch.no_grad(), _only_read(part, inputs):
            program = torch.onnx.export(
                part.eval(),
                tuple(x.expand(TRACED, *x.shape[1:]) for x in inputs),  # takes no memory: the items are one
                dynamo=True,
                opset_version=opset,
                input_names=list(names[0]),
                output_names=list(names[1]),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever its passes meet
        raise ExportError(f"stage {stage} cannot be exported: {first_line(error)}") from error
    if program is None:
        raise ExportError(f"stage {stage} cannot be exported: torch returned no program")
    model = program.model_proto
    name_batch(model, stage)
    _clean(model, stage)
    _check(model, stage)
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about things this model does not use off the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    """Lets the exporter make its table of operators once, not for every graph: it parses their source for a second.

    Nothing is added to the table, so all graphs may share it. Another release of PyTorch may keep it elsewhere: then
    it is made every time.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        original = ONNXRegistry.__dict__["from_torchlib"]
    except (ImportError, KeyError):
        yield
        return
    ONNXRegistry.from_torchlib = staticmethod(_registry(ONNXRegistry))  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original  # type: ignore[method-assign]


@cache
def _registry(registry: Any) -> Any:
    """``from_torchlib``, which remembers what it has made."""
    return cache(registry.from_torchlib)


@contextlib.contextmanager
def _only_read(part: nn.Module, inputs: Sequence[Tensor]) -> Iterator[None]:
    """``part`` without the parameters that it does not compute with.

    It holds the whole model, so that names are the published ones, and the exporter would carry every parameter
    through each of its passes. Those left out are None meanwhile: computing with one would be an error.
    """
    read = _read(part, inputs)
    hidden = [
        (module, name, parameter)
        for module in part.modules()
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if id(parameter) not in read
    ]
    for module, name, _ in hidden:
        setattr(module, name, None)
    try:
        yield
    finally:
        for module, name, parameter in hidden:
            setattr(module, name, parameter)


def _read(part: nn.Module, inputs: Sequence[Tensor]) -> set[int]:
    """The ``id`` of every parameter that some operator of ``part`` reads, found on shapes alone."""
    parameters = dict(part.named_parameters())
    # The part may also hold tensors that are no parameters, which stay as they are.
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, _Operands() as operands:
        shapes: dict[str, Tensor] = {name: fake.from_tensor(each) for name, each in parameters.items()}
        torch.func.functional_call(part, shapes, tuple(fake.from_tensor(x) for x in inputs))
    return {id(parameter) for name, parameter in parameters.items() if id(shapes[name]) in operands.found}


class _Operands(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, not ours
    """Collects the ``id`` of every tensor that an operator is called with."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.found |= {id(x) for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)}
        return func(*args, **(kwargs or {}))


def _clean(model: onnx.ModelProto, stage: str) -> None:
    """Name nodes after the modules they come from; drop stack traces, paths and unused shapes."""
    graph = model.graph
    graph.name = stage
    counts: Counter[str] = Counter()
    for node in graph.node:
        scope = _scope(node)
        base = f"{scope}/{node.op_type}" if scope else node.op_type
        counts[base] += 1
        node.name = base if counts[base] == 1 else f"{base}_{counts[base]}"
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del graph.metadata_props[:]
    del model.metadata_props[:]
    model.producer_name = "mrsep-deploy"
    model.producer_version = ""
    model.doc_string = graph.doc_string = ""


def _scope(node: onnx.NodeProto) -> str:
    """The innermost module a node was traced in, ``model.encoder.0.dconv`` -> ``encoder.0.dconv``."""
    for prop in node.metadata_props:
        if prop.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(prop.value)
            return str(scopes[-2]).removeprefix("model.") if len(scopes) > 1 else ""
    return ""


def _check(model: onnx.ModelProto, stage: str) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"stage {stage} gave an invalid ONNX graph: {first_line(error)}") from error
    twice = [t for t, count in Counter(i.name for i in model.graph.initializer).items() if count > 1]
    if twice:
        raise ExportError(f"stage {stage} stores {twice[0]} twice")
