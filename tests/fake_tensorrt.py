"""A TensorRT without a GPU: enough of it to run what drives it, on the driver of ``fake_cuda``.

``FakeTensorRt(driver)`` stands for the module ``tensorrt``, ``FakeRtx(driver)`` for ``tensorrt_rtx``. Its builder keeps
the ONNX graph as the plan and its contexts compute it with ONNX's reference, as kernels of the fake driver. ``fails``
names the calls that are to fail.

The rules of NVIDIA's that it enforces; what breaks one is noted in the driver's ``violations``:

    memory given to a context is not freed while the context points into it, and contexts that may run at once, in
    one graph or beside each other, are given none of each other's (``set_device_memory``)
        https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/ExecutionContext.html
    one execution context for each captured graph; a context has run once before it is captured; what a graph was
    captured from outlives it
        https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/optimization.html (CUDA Graphs)
    an engine and its contexts run on the device that was current when the engine was loaded
        https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/troubleshooting.html (FAQs, several GPUs)
    TensorRT for RTX: engines are captured only if they were built with REQUIRE_USER_ALLOCATION
        https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/release-notes-1/1.2.html
    TensorRT for RTX: kernels are compiled in every process, unless its runtime cache has them; a blob of another
    environment is refused, and leaves the cache as it was
        https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/_static/cpp-api/classnvinfer1_1_1_i_runtime_config.html
    constructors and factories may make nothing, timing caches may be refused, messages may come from any thread
        https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/BuilderConfig.html
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from enum import Enum, IntEnum
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from fake_cuda import CudaFault, FakeDriver
from onnx.reference import ReferenceEvaluator

from mrsep_deploy.devices.interface import DeviceTensor

PREFIX = b"fake plan "
ALLOCATED = b"fake user's plan "
"""Of an engine that needs no allocation while it runs."""


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT64 = 8


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class Flag(IntEnum):
    STRONGLY_TYPED = 1


class Elsewhere(IntEnum):
    """TensorRT 11, where networks are strongly typed and bit 1 means something else."""

    OTHER = 1


class BuilderFlag(IntEnum):
    TF32 = 6


class RtxFlag(IntEnum):
    TF32 = 6
    REQUIRE_USER_ALLOCATION = 20


class Capability(IntEnum):
    SM80 = 80
    SM86 = 86


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class Strategy(IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class Mode(IntEnum):
    INPUT = 1
    OUTPUT = 2


class LayerType(Enum):
    CONVOLUTION = 0
    ELEMENTWISE = 1


_TYPES = {
    np.dtype("float32"): DataType.FLOAT,
    np.dtype("float16"): DataType.HALF,
    np.dtype("int64"): DataType.INT64,
}


class FakeTensorRt(ModuleType):
    """The module. ``calls`` notes what is done to contexts and configurations, in order."""

    DataType = DataType
    BuilderFlag: type[IntEnum] = BuilderFlag
    MemoryPoolType = MemoryPoolType
    ExecutionContextAllocationStrategy = Strategy
    NetworkDefinitionCreationFlag: Any = Flag

    def __init__(self, driver: FakeDriver, version: str = "10.13.2.6", workspace: int = 1000) -> None:
        super().__init__("tensorrt")
        self.driver = driver
        self.__version__ = version
        self.workspace = workspace
        self.fails: set[str] = set()
        self.calls: list[tuple[Any, ...]] = []
        self.timings: list[bytes] = []
        if version.startswith("11."):
            self.NetworkDefinitionCreationFlag = Elsewhere
        self.ILogger = _Logger
        self.Builder: Callable[[Any], _Builder] = lambda logger: _Builder(self, logger)
        self.OnnxParser: Callable[[Any, Any], _Parser] = lambda network, logger: _Parser(self, network)
        self.Runtime: Callable[[Any], _Runtime] = lambda logger: _Runtime(self, logger)

    @property
    def is_rtx(self) -> bool:
        return isinstance(self, FakeRtx)

    def null(self, what: str) -> None:
        """Pybind's word for a constructor that made nothing, where ``fails`` names it."""
        if what in self.fails:
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def of(self, what: str) -> list[tuple[Any, ...]]:
        """The calls of one kind."""
        return [call[1:] for call in self.calls if call[0] == what]


class FakeRtx(FakeTensorRt):
    """The module of TensorRT for RTX. ``compiled`` names the engines whose kernels were compiled, by their outputs.

    Attributes:
        environment: a runtime cache of another one is refused.
    """

    BuilderFlag = RtxFlag
    ComputeCapability = Capability
    IRuntimeCache = object

    def __init__(self, driver: FakeDriver, version: str = "1.7.1.116", workspace: int = 1000) -> None:
        super().__init__(driver, version, workspace)
        self.compiled: list[str] = []
        self.environment = b"driver 580"


class _Logger:
    ERROR, INTERNAL_ERROR, WARNING = Severity.ERROR, Severity.INTERNAL_ERROR, Severity.WARNING

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class _Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self.name = value.name
        self.shape = tuple(d.dim_value for d in kind.shape.dim)
        self.dtype = _TYPES[onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)]


class _Layer:
    num_outputs = 1

    def __init__(self, node: onnx.NodeProto, output: _Tensor) -> None:
        self.type = LayerType.CONVOLUTION if node.op_type == "Conv" else LayerType.ELEMENTWISE
        self.output = output

    def get_output(self, index: int) -> _Tensor:
        return self.output


class _Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.inputs: list[_Tensor] = []
        self.outputs: list[_Tensor] = []
        self.layers: list[_Layer] = []
        self.graph = b""

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))
    num_layers = property(lambda self: len(self.layers))

    def get_flag(self, flag: IntEnum) -> bool:
        return bool(self.flags & 1 << int(flag))

    def get_input(self, index: int) -> _Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> _Tensor:
        return self.outputs[index]

    def get_layer(self, index: int) -> _Layer:
        return self.layers[index]


class _Parser:
    num_errors = 0

    def __init__(self, library: FakeTensorRt, network: _Network) -> None:
        library.null("parser")
        self.network = network

    def parse(self, graph: bytes) -> bool:
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
        known = {v.name: _Tensor(v) for v in (*model.graph.value_info, *model.graph.output)}
        self.network.graph = graph
        self.network.inputs = [_Tensor(value) for value in model.graph.input]
        self.network.outputs = [_Tensor(value) for value in model.graph.output]
        self.network.layers = [_Layer(node, known[node.output[0]]) for node in model.graph.node]
        return True


class _TimingCache:
    """Timings as text: every build adds a line."""

    def __init__(self, library: FakeTensorRt, data: bytes) -> None:
        self.library, self.lines = library, set(data.splitlines())

    def combine(self, other: _TimingCache, _ignore: bool) -> bool:
        if "combine" in self.library.fails:  # of another device
            return False
        self.lines |= other.lines
        return True

    def serialize(self) -> bytes:
        return b"\n".join(sorted(self.lines))


class _Config:
    max_aux_streams = -1
    builder_optimization_level = 3

    def __init__(self, library: FakeTensorRt) -> None:
        self.library = library
        self.flags: set[IntEnum] = {library.BuilderFlag["TF32"]}
        self.num_compute_capabilities = 0
        self.limits: dict[MemoryPoolType, int] = {}
        self.timing: _TimingCache | None = None

    def set_flag(self, flag: IntEnum) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: IntEnum) -> None:
        self.flags.discard(flag)

    def set_compute_capability(self, capability: Capability, index: int) -> bool:
        return index < self.num_compute_capabilities

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.limits[pool] = size

    def create_timing_cache(self, data: bytes) -> _TimingCache | None:
        broken = data.startswith(b"damaged") or "timing cache" in self.library.fails
        return None if broken else _TimingCache(self.library, data)

    def set_timing_cache(self, cache: _TimingCache, _ignore: bool) -> bool:
        if "set timing" in self.library.fails:
            return False
        self.timing = cache
        return True

    def get_timing_cache(self) -> _TimingCache | None:
        return None if "get timing" in self.library.fails else self.timing


class _Builder:
    def __init__(self, library: FakeTensorRt, logger: Any) -> None:
        library.null("builder")
        self.library, self.logger = library, logger

    def create_network(self, flags: int) -> _Network:
        return _Network(flags)

    def create_builder_config(self) -> _Config | None:
        return None if "config" in self.library.fails else _Config(self.library)

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        self.library.calls.append(("build", network, config))
        self.library.calls.append(("built on", self.library.driver.current))
        if "build in a thread" in self.library.fails:  # kernels are compiled in threads of the library's own
            worker = threading.Thread(target=self.logger.log, args=(Severity.ERROR, "no kernel fits"))
            worker.start()
            worker.join()
            return None
        if "build" in self.library.fails:
            self.logger.log(Severity.WARNING, "not this")
            self.logger.log(Severity.ERROR, "Could not find any\nimplementation for node 3")
            return None
        if config.timing is not None:
            config.timing.lines.add(b"kernel %d" % len(self.library.of("build")))
        return (ALLOCATED if RtxFlag.REQUIRE_USER_ALLOCATION in config.flags else PREFIX) + network.graph


class _Runtime:
    def __init__(self, library: FakeTensorRt, logger: Any) -> None:
        library.null("runtime")
        self.library, self.logger = library, logger

    def deserialize_cuda_engine(self, data: bytes) -> _Engine | None:
        if "memory" in self.library.fails:
            text = "[defaultAllocator.cpp::allocateAsync::48] Error Code 1: Cuda Runtime (out of memory)"
            self.logger.log(Severity.ERROR, text)
            return None
        if "deserialize" in self.library.fails:
            self.library.fails.discard("deserialize")
            self.logger.log(Severity.ERROR, "The engine plan file is not compatible")
            return None
        self.library.calls.append(("load", self.library.driver.current))
        return _Engine(self.library, self.logger, data)


class _Engine:
    def __init__(self, library: FakeTensorRt, logger: Any, data: bytes) -> None:
        self.library, self.logger, self.device = library, logger, library.driver.current
        self.allocates = library.is_rtx and not data.startswith(ALLOCATED)
        self.model = onnx.load_from_string(data.removeprefix(PREFIX).removeprefix(ALLOCATED))
        self.inputs = {value.name: _Tensor(value) for value in self.model.graph.input}
        self.tensors = {**self.inputs, **{v.name: _Tensor(v) for v in self.model.graph.output}}
        self.num_io_tensors = len(self.tensors)
        self.device_memory_size_v2 = library.workspace

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name].dtype

    def create_runtime_config(self) -> _RuntimeConfig | None:
        return None if "runtime config" in self.library.fails else _RuntimeConfig(self.library)

    def create_execution_context(self, how: Strategy | _RuntimeConfig) -> _Context | None:
        strategy = how if isinstance(how, Strategy) else how.strategy
        self.library.calls.append(("context", strategy))
        if isinstance(self.library, FakeRtx):
            kernels = self.model.graph.output[0].name
            cache = how.cache.kernels if isinstance(how, _RuntimeConfig) and how.cache else set()
            if kernels not in cache:
                self.library.compiled.append(kernels)
                cache.add(kernels)
        fourth = "fourth context" in self.library.fails and len(self.library.of("context")) == 4
        return None if fourth or "context" in self.library.fails else _Context(self)


class _RuntimeCache:
    def __init__(self, library: FakeRtx) -> None:
        self.library, self.kernels = library, set[str]()

    def deserialize(self, blob: bytes) -> bool:
        environment, *kernels = blob.split(b"\n")
        if environment != self.library.environment:
            return False
        self.kernels |= {each.decode() for each in kernels}
        return True

    def serialize(self) -> bytes | None:
        if "serialize" in self.library.fails:
            return None
        return b"\n".join([self.library.environment, *(each.encode() for each in sorted(self.kernels))])


class _RuntimeConfig:
    def __init__(self, library: FakeTensorRt) -> None:
        self.library, self.strategy = library, Strategy.STATIC
        self.cache: _RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> _RuntimeCache | None:
        assert isinstance(self.library, FakeRtx)
        return None if "runtime cache" in self.library.fails else _RuntimeCache(self.library)

    def set_runtime_cache(self, cache: _RuntimeCache) -> bool:
        if "set runtime cache" in self.library.fails:
            return False
        self.cache = cache
        return True


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine, self.library = engine, engine.library
        self.addresses: dict[str, int] = {}
        self.reference = ReferenceEvaluator(engine.model)
        self.holder = self.library.driver.held_by(self)
        self.holder.device = engine.device

    def set_device_memory(self, pointer: int, size: int) -> None:
        self.library.calls.append(("memory", self.engine.model.graph.output[0].name, pointer, size))
        self.holder.scratch = range(pointer, pointer + size)

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.library.calls.append(("address", name, pointer))
        self.addresses[name] = pointer
        return "address" not in self.library.fails

    def execute_async_v3(self, stream: int) -> bool:
        self.library.calls.append(("execute", stream, dict(self.addresses)))
        if "execute" in self.library.fails:
            return False
        if self.engine.allocates and self.library.driver.is_capturing(stream):
            self.library.driver.violations.append("an engine that allocates while it runs was captured")
        driver, reference, inputs = self.library.driver, self.reference, list(self.engine.inputs)
        tensors = {name: self._tensor(name) for name in self.engine.tensors}
        outputs = [value.name for value in self.engine.model.graph.output]

        def kernel() -> None:  # which does not keep its context
            given = {name: driver.array(tensors[name]).copy() for name in inputs}
            for name, result in zip(outputs, reference.run(None, given), strict=True):
                driver.array(tensors[name])[...] = result

        scratch = self.holder.scratch
        touched = list(tensors.values())
        if scratch:
            touched.append(DeviceTensor(scratch.start, (len(scratch),), np.dtype("uint8")))
        with contextlib.suppress(CudaFault):
            driver.launch(stream, kernel, touched, self.holder)
            return True
        self.engine.logger.log(Severity.ERROR, "Error Code 1: Cuda Runtime")
        return False

    def is_stream_capturable(self, _stream: int) -> bool:
        return not self.engine.allocates

    def _tensor(self, name: str) -> DeviceTensor:
        tensor = self.engine.tensors[name]
        dtype = next(np_type for np_type, kind in _TYPES.items() if kind == tensor.dtype)
        return DeviceTensor(self.addresses[name], tensor.shape, dtype)
