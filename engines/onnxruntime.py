"""ONNX Runtime on the CPU, the engine that is always there: ``--engine ort``."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import BATCH, Stage
from mrsep_deploy.devices.interface import DeviceTensor, Runner, Stream, Tensors, TensorView
from mrsep_deploy.engines.contract import Engine, EngineOptions, Preference
from mrsep_deploy.errors import EngineError, first_line
from mrsep_deploy.precision.names import ACCUMULATIONS, Accumulation, Precision
from mrsep_deploy.precision.requested import require_onnx
from mrsep_deploy.process.interrupts import aside
from mrsep_deploy.process.libraries import library

PROVIDER = "CPUExecutionProvider"
ERRORS_ONLY = 3
"""ONNX Runtime's log level."""


class OnnxRuntimeEngine(Engine):
    """Runs graphs with ``onnxruntime``'s CPU provider, writing straight into the given buffers.

    Graphs of lower precision run as ``rounded_graph`` writes them, in float32 with every rounding a GPU
    makes, those of accumulation in float16 included where it is asked for: left to itself, ONNX Runtime
    rounds only where a chain of operators ends.
    """

    name: ClassVar[str] = "ort"
    title: ClassVar[str] = "ONNX Runtime (CPU)"
    package: ClassVar[str] = "onnxruntime"
    install: ClassVar[str] = "pip install onnxruntime"
    preference: ClassVar[Preference] = Preference(5, "no faster engine is installed")
    measured: ClassVar[bool] = True
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "bf16")
    only_named: ClassVar[tuple[Precision, ...]] = ("bf16",)
    accumulations: ClassVar[tuple[Accumulation, ...]] = ACCUMULATIONS
    emulation: str = (
        "in float32, rounded after every operator as on a GPU that accumulates in float32: what is expected"
    )

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        if options.accumulation == "float16" and options.precision == "fp16":
            self.emulation = (
                "in float32, rounded after every operator and within every product as on a GPU that accumulates in "
                "float16: the worst case"
            )
        elif options.accumulation == "float16" and options.precision == "bf16":
            self.emulation += " and, because no GPU accumulates bfloat16 in 16 bits, the worst case"

    def prepare(self, bundle: Bundle, stage: Stage, threads: int, stream: Stream) -> Runner:
        return OrtRunner(self.session(bundle, stage, threads), stage)

    def prepare_lanes(
        self, bundle: Bundle, stage: Stage, threads: int, streams: Sequence[Stream]
    ) -> list[Runner]:
        # A session's threads are one pool, which runs that overlap would fight for; with one thread there is none.
        if threads > 1:
            return super().prepare_lanes(bundle, stage, threads, streams)
        session = self.session(bundle, stage, threads)
        return [OrtRunner(session, stage) for _ in streams]

    def session(self, bundle: Bundle, stage: Stage, threads: int) -> Any:
        """A stage's session, loaded.

        Raises:
            EngineError: ONNX Runtime cannot load it, or put it elsewhere.
        """
        ort = library("onnxruntime")
        graph = _graph(bundle, stage, self.options.accumulation)
        _share_arena()
        options = self.session_options(stage, threads)
        options.add_free_dimension_override_by_name(BATCH, bundle.manifest.batch)
        try:
            # On a thread of its own: the first session also switches the thread that makes it.
            session = aside(lambda: ort.InferenceSession(graph, options, providers=[PROVIDER]))
        except Exception as error:  # onnxruntime's own exceptions share no public base
            raise EngineError(f"ONNX Runtime cannot load stage {stage.name}: {first_line(error)}") from error
        if session.get_providers() != [PROVIDER]:
            raise EngineError(
                f"ONNX Runtime put stage {stage.name} on {session.get_providers()}, not {PROVIDER}"
            )
        return session

    def session_options(self, stage: Stage, threads: int) -> Any:
        """How a stage's session is made."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Weights stay as long as the session: out of the arena, whose blocks they would fill up unevenly.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        # A memory pattern is one more block of a session's whole need, beside the arena that has it already.
        options.enable_mem_pattern = False
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        # Stages take turns on the same cores: a pool that spins while another stage runs steals from it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # For its own threads; those that call it are the streams', which switched themselves.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        return options


def _graph(bundle: Bundle, stage: Stage, accumulation: Accumulation) -> str | bytes:
    """The file to load, or what takes its place where the graph is of lower precision."""
    if bundle.manifest.precision == "float32" or stage.kind != "graph":
        return str(bundle.graph_path(stage))
    require_onnx(f"running {bundle.manifest.precision} graphs on a CPU")
    from mrsep_deploy.precision.emulate import rounded_graph

    return rounded_graph(bundle.graph_bytes(stage), accumulation)


_arena = threading.Lock()


def _share_arena() -> None:
    """Make the arena once; several threads may be the first."""
    with _arena:
        _make_arena()


@functools.cache
def _make_arena() -> None:
    """One arena for the sessions of all stages, which take turns: what one lets go of, the next one uses.

    With an arena for each, HTDemucs' five stages hold 3.0 GB after two segments instead of 1.2.
    """
    import onnxruntime as ort

    kind = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", kind, 0, ort.OrtMemType.DEFAULT), None)


class OrtRunner(Runner):
    """One stage: a session, bound to addresses at every run; ``device`` is the index of its GPU, if it is on one."""

    def __init__(self, session: Any, stage: Stage, device: int = 0) -> None:
        self.session, self.stage, self.device = session, stage, device
        self.binding = session.io_binding()

    def __call__(self, tensors: Tensors) -> None:
        try:
            for name in self.stage.inputs:
                self.binding.bind_input(name, *self._place(tensors[name]))
            for name in self.stage.outputs:
                self.binding.bind_output(name, *self._place(tensors[name]))
            self.session.run_with_iobinding(self.binding, self.run_options())
        except Exception as error:  # onnxruntime's own exceptions share no public base
            raise EngineError(
                f"ONNX Runtime failed in stage {self.stage.name}: {first_line(error)}"
            ) from error

    def run_options(self) -> Any:
        """Those of the next run."""
        return None

    def _place(self, tensor: TensorView) -> tuple[str, int, Any, tuple[int, ...], int]:
        """Device, index, element type, shape and address; given an array, a binding would keep it alive."""
        if isinstance(tensor, DeviceTensor):
            return "cuda", self.device, tensor.dtype.type, tensor.shape, tensor.pointer
        return "cpu", 0, tensor.dtype.type, tensor.shape, tensor.ctypes.data

    def close(self) -> None:
        self.binding = self.session = None
