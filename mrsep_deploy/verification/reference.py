"""References of a verification: PyTorch in float64, or the float32 bundle that the candidate was made from.

Both have a ``title`` for people, and say with ``transforms`` whether they compute spectrograms and inverses in a way
of their own, so that comparing them tells something.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.errors import UsageError
from mrsep_deploy.verification.chain import Chain

Array = NDArray[Any]


class BundleReference:
    """A float32 bundle on ONNX Runtime."""

    transforms = False

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        if bundle.manifest.precision != "float32":
            raise UsageError(
                f"the reference {bundle.path} is of precision {bundle.manifest.precision}, expected float32",
                "Give the bundle that was exported from the checkpoint.",
            )
        self._engine = choose("ort", EngineOptions(threads)).engine
        self.chain = Chain(bundle, self._engine)
        self.title = f"{bundle.manifest.name} in float32 on {self._engine.title}"

    def tensors(self, mix: Array) -> Mapping[str, Array]:
        """Returns every tensor by name, of segments ``[B, C, L]``."""
        return self.chain.run(mix)

    def yardstick(self, mix: Array) -> None:
        """Returns None: a bundle's own float32 is no yardstick."""

    def close(self) -> None:
        """Closes sessions and memory. Idempotent."""
        self.chain.close()
        self._engine.close()


class TorchReference:
    """The model that a bundle was exported from, in float64.

    Args:
        manifest: of the bundle.
        checkpoint: where the checkpoint lies, if it has moved since the export.

    Raises:
        CheckpointError: it is gone, or not the one the bundle was exported from.
        ExportError: the extra ``mrsep-deploy[export]`` is not installed.
    """

    transforms = True
    title = "PyTorch in float64"

    def __init__(self, manifest: Manifest, checkpoint: Path | None = None) -> None:
        from mrsep_deploy.export.api import require_extra

        require_extra("PyTorch's reference")
        from mrsep_deploy.export.load import reload

        self._single = reload(manifest.provenance, checkpoint).staged(manifest.layout)
        self._double = copy.deepcopy(self._single).double()

    def tensors(self, mix: Array) -> Mapping[str, Array]:
        """Returns every tensor by name, of segments ``[B, C, L]``."""
        import torch

        exact = self._double.tensors(torch.from_numpy(mix.copy()).double())
        return {name: tensor.numpy() for name, tensor in exact.items()}

    def yardstick(self, mix: Array) -> Array:
        """Returns the stems ``[B, S, C, L]`` of PyTorch's own float32."""
        import torch

        with torch.no_grad():
            stems: Array = self._single(torch.from_numpy(mix.copy())).numpy()
        return stems


Reference = BundleReference | TorchReference


def require_same_stages(candidate: Manifest, reference: Manifest) -> None:
    """Raises ``UsageError`` unless two bundles have the same stages, tensors and shapes."""

    def plan(manifest: Manifest) -> object:
        stages = [(stage.name, stage.inputs, stage.outputs) for stage in manifest.stages]
        return stages, {spec.name: spec.shape for spec in manifest.tensors}

    if plan(candidate) != plan(reference):
        raise UsageError(
            f"{candidate.name} and its reference {reference.name} have different stages or shapes",
            "Give the float32 bundle it was made from, of the same layout and batch.",
        )
