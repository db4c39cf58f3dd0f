"""PyTorch in several ways, in a measuring process: the published modules, mix to stems in one call.

``TorchCudaGraph`` captures the network; spectrograms and inverses stay eager, because torch's inverse
transform reads a result back, which a capture forbids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bench.contenders import Contender, Float32, Opened
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.errors import EngineUnavailableError
from mrsep_deploy.separation.segments import SongStatistics, stride_of
from mrsep_deploy.separation.stream import Cutting, Song, SongStream, stems_of

INSTALL = 'pip install "mrsep-deploy[export]"'
GPU = "cuda"


class _Direct:
    """In the place of a scheduler: runs segments when their result is asked for."""

    capacity = 1

    def __init__(self, segments: Callable[[Float32], NDArray[Any]]) -> None:
        self.result = segments

    def submit(self, mix: Float32) -> Float32:
        return mix


class TorchEager(Opened):
    """The module as it is; on a GPU, products and convolutions in full float32."""

    @classmethod
    def imports(cls, contender: Contender) -> None:
        try:
            import torch
        except (ImportError, OSError) as error:
            raise EngineUnavailableError(f"torch cannot be imported ({error})", INSTALL) from error
        if contender.device == GPU and not torch.cuda.is_available():
            raise EngineUnavailableError(f"torch {torch.__version__} finds no GPU that it can use")
        from mrsep_deploy.export import load  # noqa: F401  what loading needs

    def __init__(self, contender: Contender) -> None:
        import torch

        from mrsep_deploy.bench.ceilings_cuda import set_tf32

        torch.set_num_threads(contender.threads)
        set_tf32(False, False)
        self.contender = contender
        self.manifest = Bundle.open(contender.bundle).manifest.at_batch(contender.batch)
        self.call = self._call(self._model())

    def _model(self) -> Any:
        """The module, loaded."""
        from mrsep_deploy.export.load import reload

        loaded = reload(self.manifest.provenance, self.contender.checkpoint_path)
        return loaded.staged("whole").to(self.contender.device)

    def _call(self, model: Any) -> Any:
        """What turns a mix on the device into stems there."""
        return model

    def segments(self, mix: Float32) -> NDArray[Any]:
        return self._stems(self.call, mix)

    def _stems(self, call: Any, mix: Float32) -> NDArray[Any]:
        import torch

        with torch.inference_mode():
            stems: NDArray[Any] = call(torch.from_numpy(mix).to(self.contender.device)).cpu().numpy()
        return stems

    def song(self, mix: Float32) -> NDArray[Any]:
        """As :meth:`mrsep_deploy.separation.separator.Separator.separate` has it, around the whole module."""
        model, application = self.manifest.model, self.manifest.application
        samples = self.manifest.kept_samples
        cutting = Cutting(samples, stride_of(samples, self.contender.overlap), application=application)
        stream = SongStream(_Direct(self.segments), model, self.manifest.batch, cutting)
        song = Song(SongStatistics.measure([mix]), [mix])
        return np.concatenate(list(stems_of(stream.run([song]))), axis=-1)

    def close(self) -> None:
        self.call = None


class TorchCompiled(TorchEager):
    """Through ``torch.compile``; its first call compiles."""

    def _call(self, model: Any) -> Any:
        import torch

        return torch.compile(model)


class TorchCudaGraph(TorchEager):
    """Every part of the network captured into a CUDA graph, at its first call."""

    graphed: GraphedModel | None = None

    def _call(self, model: Any) -> Any:
        import torch

        def call(mix: Any) -> Any:
            whole, missing = mix, self.manifest.batch - len(mix)
            if missing:  # a song's last batch may be short; a graph has one size
                whole = torch.cat([mix, mix.new_zeros((missing, *mix.shape[1:]))])
            self.graphed = self.graphed or GraphedModel(model, whole)
            return self.graphed(whole)[: len(mix)]

        return call


class TorchDouble(TorchEager):
    """The module in float64, the yardstick of all; :meth:`single` is PyTorch's own float32."""

    def _call(self, model: Any) -> Any:
        import copy

        self.single_model = model
        double = copy.deepcopy(model).double()
        return lambda mix: double(mix.double())

    def single(self, mix: Float32) -> NDArray[Any]:
        """The stems in float32."""
        return self._stems(self.single_model, mix)


class GraphedModel:
    """A model whose graph stages are each captured into a CUDA graph.

    Args:
        model: a ``StagedModel`` on the GPU.
        mix: of the shape it will be called with, on the GPU.
    """

    def __init__(self, model: Any, mix: Any) -> None:
        import torch

        from mrsep_deploy.bench.ceilings_cuda import tf32

        self.stages: list[tuple[Any, Callable[..., tuple[Any, ...]]]] = []
        tensors = {"mix": mix}
        with torch.inference_mode(), tf32(False):
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
