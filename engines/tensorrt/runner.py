"""A loaded engine and its one execution context, run on one stream."""

from __future__ import annotations

import re
from typing import Any

from mrsep_deploy.bundle.manifest import Manifest, Stage
from mrsep_deploy.devices.interface import DeviceTensor, Runner, Stream, Tensors, TensorView
from mrsep_deploy.engines.tensorrt.build import check_tensors, engine_tensors
from mrsep_deploy.engines.tensorrt.library import Library
from mrsep_deploy.errors import EngineError

NO_ROOM = re.compile(r"out of memory|outofmemory", re.IGNORECASE)
"""What the library says where the GPU has no room: the engine's bytes are as good as they were."""


class NotLoadable(EngineError):
    """The library refuses the bytes of an engine: another version's, or damaged."""


class TensorRtRunner(Runner):
    """One stage. A context runs one segment at a time: its runs must be in order, as one stream's are.

    Args:
        library: what built ``data``, the serialised engine.
        manifest, stage: what its inputs and outputs must be.
        stream: where it runs.

    Raises:
        NotLoadable: the library refuses it.
        EngineError: its inputs and outputs are not the manifest's, or there is no context to be had.
    """

    def __init__(
        self, library: Library, data: bytes, manifest: Manifest, stage: Stage, stream: Stream
    ) -> None:
        trt = library.module
        self._library, self._stage, self._stream = library, stage, stream
        what = f"a runtime for stage {stage.name}"
        self._runtime: Any = library.made(what, lambda: trt.Runtime(library.logger))
        self._engine: Any = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            reason = library.last_error()
            message = f"{library.title} cannot load stage {stage.name}: {reason}"
            if NO_ROOM.search(reason):
                raise EngineError(
                    message, "Free GPU memory (nvidia-smi shows who has it), or give a smaller --batch."
                )
            raise NotLoadable(message)
        check_tensors(engine_tensors(library, self._engine), manifest, stage)
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context: Any = self._engine.create_execution_context(strategy)
        if self._context is None:
            raise self._failed("makes no execution context for")
        self._workspace: TensorView | None = None

    @property
    def workspace_bytes(self) -> int:
        return int(self._engine.device_memory_size_v2)

    def set_workspace(self, memory: TensorView) -> None:
        pointer = self._address("the workspace", memory)
        if memory.nbytes < self.workspace_bytes:
            raise EngineError(
                f"stage {self._stage.name} was given {memory.nbytes} bytes of workspace, "
                f"expected {self.workspace_bytes}"
            )
        self._context.set_device_memory(pointer, memory.nbytes)
        self._workspace = memory

    def __call__(self, tensors: Tensors) -> None:
        if self._workspace is None and self.workspace_bytes:
            raise EngineError(f"stage {self._stage.name} was run before it was given its workspace")
        for name in (*self._stage.inputs, *self._stage.outputs):
            if not self._context.set_tensor_address(name, self._address(name, tensors[name])):
                raise self._failed(f"refuses the address of {name} in")
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._failed("failed in")

    def _address(self, name: str, tensor: TensorView) -> int:
        if not isinstance(tensor, DeviceTensor):
            raise EngineError(f"{name} of stage {self._stage.name} lies in host memory, expected the GPU's")
        return tensor.pointer

    def _failed(self, what: str) -> EngineError:
        library = self._library
        return EngineError(f"{library.title} {what} stage {self._stage.name}: {library.last_error()}")

    def close(self) -> None:
        """Let go of context, engine and runtime, in this order. Idempotent."""
        self._context = self._engine = self._runtime = None
