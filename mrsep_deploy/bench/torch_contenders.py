"""PyTorch in several ways, in a measuring process: the published modules, mix to stems in one call.

``TorchCudaGraph`` captures the network; spectrograms and inverses stay eager, because torch's inverse
transform reads a result back, which a capture forbids.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bench.contenders import Contender, Float32, Opened
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.errors import EngineUnavailableError
from mrsep_deploy.separation.segments import SongStatistics, stride_of
from mrsep_deploy.separation.stream import Cutting, Song, SongStream

INSTALL = 'pip install "mrsep-deploy[export]"'
GPU = "cuda"


class _Direct:
    """In the place of a scheduler: runs segments when their result is asked for."""

    capacity = 1

    def __init__(self, segments: Callable[[Float32], NDArray[Any]]) -> None:
        self.segments = segments

    def submit(self, mix: Float32) -> Float32:
        return mix

    def result(self, ticket: Float32) -> NDArray[Any]:
        return self.segments(ticket)


class TorchEager(Opened):
    """The module as it is, on the CPU."""

    device: ClassVar[str] = "cpu"

    @classmethod
    def imports(cls, contender: Contender) -> None:
        try:
            import torch
        except (ImportError, OSError) as error:
            raise EngineUnavailableError(f"torch cannot be imported ({error})", INSTALL) from error
        if cls.device == GPU and not torch.cuda.is_available():
            raise EngineUnavailableError(f"torch {torch.__version__} finds no GPU that it can use")
        from mrsep_deploy.export import load  # noqa: F401  what loading needs

    def __init__(self, contender: Contender) -> None:
        import torch

        from mrsep_deploy.bench.ceilings_cuda import set_tf32
        from mrsep_deploy.export.load import reload

        torch.set_num_threads(contender.threads)
        set_tf32(False, False)
        self.contender = contender
        self.manifest = Bundle.open(contender.bundle).manifest
        staged = reload(self.manifest.provenance, contender.checkpoint_path).staged("whole")
        model = staged.to(self.device)
        self.call: Callable[[Any], Any] | None = self._call(model)

    def _call(self, model: Any) -> Callable[[Any], Any]:
        call: Callable[[Any], Any] = model
        return call

    def segments(self, mix: Float32) -> NDArray[Any]:
        import torch

        assert self.call is not None
        with torch.inference_mode():
            stems: NDArray[Any] = self.call(torch.from_numpy(mix).to(self.device)).cpu().numpy()
        return stems

    def song(self, mix: Float32) -> NDArray[Any]:
        """As :meth:`mrsep_deploy.separation.separator.Separator.separate` has it, around the whole module."""
        manifest = self.manifest
        model, application = manifest.model, manifest.application
        stride = stride_of(model.segment_samples, self.contender.overlap)
        cutting = Cutting(model.segment_samples, stride, application=application)
        stream = SongStream(_Direct(self.segments), model, manifest.batch, cutting)
        pieces = []
        for separated in stream.run([Song(SongStatistics.measure([mix]), [mix])]):
            if separated.error is not None:
                raise separated.error
            if separated.stems is not None:
                pieces.append(separated.stems)
        return np.concatenate(pieces, axis=-1)

    def close(self) -> None:
        self.call = None


class TorchCompiled(TorchEager):
    """Through ``torch.compile``; its first call compiles."""

    def _call(self, model: Any) -> Callable[[Any], Any]:
        import torch

        compiled: Callable[[Any], Any] = torch.compile(model)
        return compiled


class TorchCuda(TorchEager):
    """On the GPU, products and convolutions in full float32."""

    device: ClassVar[str] = GPU


class TorchCudaCompiled(TorchCompiled):
    """Through ``torch.compile`` on the GPU."""

    device: ClassVar[str] = GPU


class TorchCudaGraph(TorchCuda):
    """Every part of the network captured into a CUDA graph, at its first call."""

    def _call(self, model: Any) -> Callable[[Any], Any]:
        made: list[GraphedModel] = []

        def call(mix: Any) -> Any:
            if not made:
                made.append(GraphedModel(model, self._whole(mix)))
            whole = self._whole(mix)
            return made[0](whole)[: len(mix)]

        return call

    def _whole(self, mix: Any) -> Any:
        """A song's last batch may be short; a graph has one size."""
        missing = self.manifest.batch - len(mix)
        if not missing:
            return mix
        import torch

        return torch.cat([mix, mix.new_zeros((missing, *mix.shape[1:]))])


class TorchDouble(TorchEager):
    """The module in float64, the yardstick of all; :meth:`single` is PyTorch's own float32."""

    def _call(self, model: Any) -> Callable[[Any], Any]:
        import copy

        self.single_model = model
        double: Callable[[Any], Any] = copy.deepcopy(model).double()
        return double

    def segments(self, mix: Float32) -> NDArray[Any]:
        import torch

        assert self.call is not None
        with torch.inference_mode():
            stems: NDArray[Any] = self.call(torch.from_numpy(mix).double()).numpy()
        return stems

    def single(self, mix: Float32) -> NDArray[Any]:
        """The same in float32."""
        import torch

        with torch.inference_mode():
            stems: NDArray[Any] = self.single_model(torch.from_numpy(mix)).numpy()
        return stems


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Products and convolutions on the GPU without TF32."""
    from mrsep_deploy.bench.ceilings_cuda import tf32

    with tf32(False):
        yield


class GraphedModel:
    """A model whose graph stages are each captured into a CUDA graph.

    Args:
        model: a ``StagedModel`` on the GPU.
        mix: of the shape it will be called with, on the GPU.
    """

    def __init__(self, model: Any, mix: Any) -> None:
        import torch

        self.stages: list[tuple[Any, Callable[..., tuple[Any, ...]]]] = []
        tensors = {"mix": mix}
        with torch.inference_mode(), full_precision():
            for source in model.stages:
                stage, call = source.stage, source.module
                inputs = [tensors[name] for name in stage.inputs]
                if stage.kind == "graph":
                    call = _captured(call, inputs)
                tensors.update(zip(stage.outputs, call(*inputs), strict=True))
                self.stages.append((stage, call))

    def __call__(self, mix: Any) -> Any:
        tensors = {"mix": mix}
        for stage, call in self.stages:
            outputs = call(*(tensors[name] for name in stage.inputs))
            tensors.update(zip(stage.outputs, outputs, strict=True))
        return tensors["stems"]


def _captured(part: Any, inputs: list[Any]) -> Callable[..., tuple[Any, ...]]:
    """The part as a graph that is launched on copies of its inputs."""
    import torch

    given = [each.clone() for each in inputs]
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.device(GPU):  # constants made on the host would have to be copied, which a capture forbids
        with torch.cuda.stream(side):
            for _ in range(3):
                part(*given)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            outputs: tuple[Any, ...] = part(*given)

    def launch(*values: Any) -> tuple[Any, ...]:
        for place, value in zip(given, values, strict=True):
            place.copy_(value)
        graph.replay()
        return outputs

    return launch
