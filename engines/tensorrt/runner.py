"""A loaded engine, and its execution contexts, each run on one stream."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from mrsep_deploy.bundle.manifest import Manifest, Stage
from mrsep_deploy.devices.interface import (
    Closable,
    Device,
    DeviceTensor,
    Runner,
    Stream,
    Tensors,
    TensorView,
)
from mrsep_deploy.engines.tensorrt.build import check_tensors, engine_tensors
from mrsep_deploy.engines.tensorrt.caches import RuntimeCache
from mrsep_deploy.engines.tensorrt.library import Library
from mrsep_deploy.errors import EngineError

NO_ROOM = re.compile(r"out of memory|outofmemory", re.IGNORECASE)
"""What the library says where the GPU has no room: the engine's bytes are as good as they were."""


class NotLoadable(EngineError):
    """The library refuses the bytes of an engine: another version's, or damaged."""


class LoadedEngine:
    """An engine on the GPU, which several contexts run: its weights are there once.

    Args:
        library: what built ``data``, the serialised engine.
        manifest, stage: what its inputs and outputs must be.
        kernels: those compiled for it in earlier processes, where the library compiles any.

    Raises:
        NotLoadable: the library refuses it.
        EngineError: its inputs and outputs are not the manifest's, or the GPU has no room for it.
    """

    def __init__(
        self,
        library: Library,
        data: bytes,
        manifest: Manifest,
        stage: Stage,
        kernels: RuntimeCache | None = None,
    ) -> None:
        self.library, self.stage, self.kernels, self.users = library, stage, kernels, 0
        what = f"a runtime for stage {stage.name}"
        self.runtime: Any = library.made(what, lambda: library.module.Runtime(library.logger))
        self.engine: Any = self.runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            reason = library.last_error()
            message = f"{library.title} cannot load stage {stage.name}: {reason}"
            if NO_ROOM.search(reason):
                raise EngineError(
                    message, "Free GPU memory (nvidia-smi shows who has it), or give a smaller --batch."
                )
            raise NotLoadable(message)
        check_tensors(engine_tensors(library, self.engine), manifest, stage)
        self._how: Any = library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if kernels is not None:
            strategy = self._how
            self._how = library.made("a runtime's configuration", self.engine.create_runtime_config)
            self._how.set_execution_context_allocation_strategy(strategy)
            kernels.load(self._how)

    def context(self) -> Any:
        """An execution context that brings no memory of its own; its user is done at ``let_go``."""
        made = self.engine.create_execution_context(self._how)
        if made is None:
            raise self.failed("makes no execution context for")
        self.users += 1
        return made

    def let_go(self) -> None:
        """One user less; after the last the engine goes, then its runtime."""
        self.users -= 1
        if not self.users:
            if self.kernels is not None:
                self.kernels.save()
            self._how = None
            self.kernels = None
            self.engine = None
            self.runtime = None

    def failed(self, what: str) -> EngineError:
        """The error of a call that failed."""
        library = self.library
        return EngineError(f"{library.title} {what} stage {self.stage.name}: {library.last_error()}")


class TensorRtRunner(Closable, Runner):
    """One stage: an execution context of a loaded engine.

    A context runs one segment at a time, so its runs must be in order, as one stream's are; and one CUDA graph at
    most is captured from it.

    Args:
        device: where the engine was loaded.
        stream: where it runs.

    Raises:
        EngineError: there is no context to be had.
    """

    def __init__(self, loaded: LoadedEngine, device: Device, stream: Stream) -> None:
        self._loaded, self._stage, self._stream = loaded, loaded.stage, stream
        self._workspace: TensorView | None = None
        self._context: Any = loaded.context()
        self._workspace_bytes = int(loaded.engine.device_memory_size_v2)
        self._device = device
        super().__init__(device)

    @property
    def workspace_bytes(self) -> int:
        return self._workspace_bytes

    def uncapturable(self) -> str:
        asked = getattr(self._context, "is_stream_capturable", None)
        if asked is None or asked(self._stream.handle):
            return ""
        return f"{self._loaded.library.title} would allocate memory while it runs"

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
                raise self._loaded.failed(f"refuses the address of {name} in")
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._loaded.failed("failed in")

    def _address(self, name: str, tensor: TensorView) -> int:
        if not isinstance(tensor, DeviceTensor):
            raise EngineError(f"{name} of stage {self._stage.name} lies in host memory, expected the GPU's")
        return tensor.pointer

    def _release(self) -> None:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(EngineError):  # a GPU that is lost: its memory is gone all the same
                stack.enter_context(self._device.current())
            # The context is gone before its engine, and both before the workspace and the stream.
            self._context = None
            self._loaded.let_go()
