"""One ONNX graph to one serialised engine: parse, look at what was parsed, build.

Networks are strongly typed: the graph's own element types are the engine's, and no builder flag changes
them. So what an engine is called (fp32, fp16) is checked against what its layers compute in.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mrsep_deploy.bundle.manifest import STEMS, Manifest, Stage
from mrsep_deploy.engines.cache import NewEngine
from mrsep_deploy.engines.contract import BuildOptions
from mrsep_deploy.engines.tensorrt.caches import TimingCache
from mrsep_deploy.engines.tensorrt.library import Library
from mrsep_deploy.errors import EngineError, UsageError, first_line
from mrsep_deploy.precision.costs import read_costs
from mrsep_deploy.precision.names import Precision
from mrsep_deploy.precision.requested import require_onnx

log = logging.getLogger(__name__)

HEAVY_LAYERS = frozenset(
    ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "ATTENTION", "ATTENTION_INPUT")
)
"""Layers that decide what precision an engine has: those where the arithmetic is."""

NO_KERNEL = "is_decomposable"
"""What Myelin's error says of an attention that no fused kernel takes, and that may not be taken apart either."""

_TRANSPARENT = frozenset(("CONSTANT", "CAST", "IDENTITY", "SHUFFLE", "SHAPE"))


def build_plan(
    library: Library,
    graph: bytes,
    manifest: Manifest,
    stage: Stage,
    precision: Precision,
    options: BuildOptions,
    timing: TimingCache | None = None,
) -> NewEngine:
    """Build the engine of a stage; its details are what its layers compute in, and its tensors' element types.

    Args:
        graph: its ONNX graph, weights inside.
        precision: what the engine is going to be called.
        options: ``targets`` are names out of ``library.capabilities()``.
        timing: kernel timings to use and to add to, for a library that times.

    Raises:
        EngineError: the parser or the builder refuses, or the result is not what the manifest or
            ``precision`` says; the message names the stage.
    """
    builder = library.made("a builder", lambda: library.module.Builder(library.logger))
    network = _network(library, builder, stage)
    _parse(library, network, _at_batch(library, graph, manifest.batch, stage), stage)
    check_tensors(network_tensors(library, network), manifest, stage)
    layers = layer_types(library, network)
    check_precision(layers, precision, stage, kept=stage_is_kept(manifest, stage))
    config = library.made("a builder's configuration", builder.create_builder_config)
    _configure(library, config, options)
    if timing is not None:
        timing.load(config)

    def built() -> tuple[Any, str]:
        """The engine, or why there is none."""
        found = builder.build_serialized_network(network, config)
        return found, "" if found is not None else library.last_error()

    serialized, reason = built()
    if NO_KERNEL in reason and (count := allow_decomposing(library, network)):
        log.warning(
            "%s has no fused kernel for the attention of stage %s in its type and shape: %d of them write out their "
            "scores, which takes memory and time (float32 has none at all, float16 and bfloat16 have)",
            library.title, stage.name, count,
        )  # fmt: skip
        serialized, reason = built()
    if serialized is None:
        fix = "Give it more memory: --workspace MB" if options.workspace is not None else ""
        if "FP32 GEMM is not supported" in reason:
            # Turing's; of the graphs of a bundle every one with a matrix product in it is refused there
            fix = "Leave out sm_75: TensorRT for RTX multiplies no float32 matrices on such GPUs."
        raise EngineError(f"{library.title} cannot build stage {stage.name}: {reason}", fix)
    if timing is not None:
        timing.save(config)
    tensors = {name: manifest.tensor(name).dtype for name in (*stage.inputs, *stage.outputs)}
    about = {"model": manifest.name, "stage": stage.name, "layers": layers, "tensors": tensors}
    return NewEngine(bytes(serialized), about)


def allow_decomposing(library: Library, network: Any) -> int:
    """Lets every attention be taken apart into products and a softmax; returns how many there are."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    ends = [layer for layer in layers if layer.type.name == "ATTENTION_INPUT"]
    for layer in ends:
        layer.__class__ = library.module.IAttentionInputLayer  # get_layer knows their common class alone
        layer.attention.decomposable = True
    return len(ends)


def _network(library: Library, builder: Any, stage: Stage) -> Any:
    """An empty, strongly typed network; TensorRT for RTX has no others."""
    trt = library.module
    kind = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    if library.flavour.portable or kind is None:
        return builder.create_network(0)
    network = builder.create_network(1 << int(kind))
    if not network.get_flag(kind):
        raise EngineError(f"{library.title} made no strongly typed network for stage {stage.name}")
    return network


def _at_batch(library: Library, graph: bytes, batch: int, stage: Stage) -> bytes:
    """The graph with a number for its batch: the parser makes a negative size of an unknown one in a Resize."""
    require_onnx("building TensorRT engines")
    import onnx

    from mrsep_deploy.precision.graph import set_batch

    try:
        model = onnx.load_model_from_string(graph)
    except Exception as error:  # protobuf's own
        raise _refused(library, stage, first_line(error)) from error
    set_batch(model, batch)
    return bytes(model.SerializeToString())


def _parse(library: Library, network: Any, graph: bytes, stage: Stage) -> None:
    parser = library.made("an ONNX parser", lambda: library.module.OnnxParser(network, library.logger))
    parsed = parser.parse(graph)
    if parsed and parser.num_errors == 0:
        return
    errors = [_describe(parser.get_error(i)) for i in range(parser.num_errors)]
    found = "; ".join(dict.fromkeys(errors)) or library.last_error()
    raise _refused(library, stage, found)


def _refused(library: Library, stage: Stage, found: str) -> EngineError:
    return EngineError(
        f"{library.title} cannot take the graph of stage {stage.name}: {found}",
        "Run it with another engine: --engine ort",
    )


def _describe(error: Any) -> str:
    """``operator DFT at node spectrogram/DFT: UNSUPPORTED_NODE`` and the text, which can be just "false"."""
    operator, node, text = error.node_operator(), error.node_name(), error.desc().strip()
    where = f"operator {operator}" if operator else "the graph"
    where += f" at node {node or error.node()}" if operator or node else ""
    text = "" if text in ("", "false") else f" ({text})"
    return f"{where}: {error.code().name}{text}"


def _configure(library: Library, config: Any, options: BuildOptions) -> None:
    trt = library.module
    # Branches are scheduled on streams outside: streams of the engine's own would only compete with them.
    config.max_aux_streams = 0
    # float32 means float32, as in the reference; what fp16 graphs keep in float32 needs it as much.
    config.clear_flag(trt.BuilderFlag.TF32)
    if library.user_allocation is not None:
        config.set_flag(library.user_allocation)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    known = library.capabilities()
    if options.targets:
        config.num_compute_capabilities = len(options.targets)
    for index, target in enumerate(options.targets):
        if not config.set_compute_capability(known[target], index):
            raise EngineError(f"{library.title} does not build for {target}: {library.last_error()}")


def check_targets(library: Library, targets: tuple[str, ...]) -> tuple[str, ...]:
    """The targets sorted and without repetition.

    Raises:
        UsageError: the library builds for no such target, or for no named target at all.
    """
    known = library.capabilities()
    if targets and not known:
        raise UsageError(
            f"{library.title} builds only for the GPU that is present, found --target {','.join(targets)}",
            "Leave out --target, or build for other GPUs with --engine trt-rtx.",
        )
    wrong = [target for target in targets if target not in known]
    if wrong:
        raise UsageError(
            f"{library.title} does not build for {', '.join(wrong)}, it builds for {', '.join(known)}",
            "For other GPUs build with --engine trt on the GPU itself.",
        )
    return tuple(target for target in known if target in targets)


def network_tensors(library: Library, network: Any) -> dict[str, str]:
    """Inputs and outputs of a parsed network: ``the input float32 [1, 2, 64]`` by name."""
    ends = [("input", network.get_input(i)) for i in range(network.num_inputs)]
    ends += [("output", network.get_output(i)) for i in range(network.num_outputs)]
    return {t.name: _facts(role, library.dtype(t.dtype), t.shape) for role, t in ends}


def engine_tensors(library: Library, engine: Any) -> dict[str, str]:
    """Inputs and outputs of a loaded engine, as those of a network."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return {
        name: _facts(
            engine.get_tensor_mode(name).name.lower(),
            library.dtype(engine.get_tensor_dtype(name)),
            engine.get_tensor_shape(name),
        )
        for name in names
    }


def _facts(role: str, dtype: str, shape: Iterable[int]) -> str:
    return f"the {role} {dtype} {list(shape)}"


def check_tensors(found: Mapping[str, str], manifest: Manifest, stage: Stage) -> None:
    """Raise ``EngineError`` unless names, shapes and element types are those of the manifest."""
    roles = {**dict.fromkeys(stage.inputs, "input"), **dict.fromkeys(stage.outputs, "output")}
    specs = {name: manifest.tensor(name) for name in roles}
    expected = {name: _facts(roles[name], spec.dtype, spec.shape) for name, spec in specs.items()}
    for name in sorted({**expected, **found}):
        has, wants = found.get(name, "no tensor"), expected.get(name, "no tensor")
        if has != wants:
            raise EngineError(
                f"the engine of stage {stage.name} has {has} {name}, expected {wants}",
                "Export the checkpoint again.",
            )


def layer_types(library: Library, network: Any) -> dict[str, int]:
    """How many layers compute in each floating-point type.

    Counts the heavy layers if there are any, otherwise all that compute at all. What an input is cast
    to before and after says nothing: a graph can be float16 at both ends and float32 in between.
    """
    heavy: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        if layer.num_outputs == 0 or layer.type.name in _TRANSPARENT:
            continue
        dtype = library.dtype(layer.get_output(0).dtype)
        if "float" in dtype:  # indices say nothing of precision
            counts = heavy if layer.type.name in HEAVY_LAYERS else others
            counts[dtype] += 1
    return dict(heavy or others)


def stage_is_kept(manifest: Manifest, stage: Stage) -> bool:
    """Whether a conversion left all of a stage's products in float32, as its rules or its plan said."""
    cost = read_costs(manifest).get(stage.name)
    return cost is not None and cost.kept_macs == cost.macs


def check_precision(
    layers: Mapping[str, int], precision: Precision, stage: Stage, kept: bool = False
) -> None:
    """Raise ``EngineError`` unless layers compute in what the engine is called.

    An fp16 or bf16 engine may keep layers in float32, for range; an fp32 engine has none below it. Transforms
    (all stages but the model's own graphs) are float32 in each, and so is a fusion of finished signals, and what a
    conversion ``kept`` there (masks of one layer).
    """
    halves = layers.get("float16", 0) + layers.get("bfloat16", 0)
    found = ", ".join(f"{count} in {dtype}" for dtype, count in sorted(layers.items())) or "none"
    what = f"the graph of stage {stage.name} has"
    low = {"fp16": "float16", "bf16": "bfloat16"}.get(precision)
    if low and stage.kind == "graph" and STEMS not in stage.outputs and not layers.get(low, 0) and not kept:
        raise EngineError(
            f"{what} no {low} layers ({found}), so its engine would not be {precision}",
            "Choose --precision fp32.",
        )
    if low and halves != layers.get(low, 0):
        raise EngineError(
            f"{what} layers of another lower precision ({found}), so its engine would not be {precision}",
            "Convert the float32 bundle again.",
        )
    if precision == "fp32" and halves:
        raise EngineError(
            f"{what} layers below float32 ({found}), so its engine would not be fp32",
            f"Choose --precision {'fp16' if layers.get('float16', 0) else 'bf16'}.",
        )
