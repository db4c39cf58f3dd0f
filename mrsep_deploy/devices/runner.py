"""Runners: stages of a bundle made ready to run, each on one stream. Engines and host transforms make them."""

from __future__ import annotations

import abc
from collections.abc import Mapping

from mrsep_deploy.devices.interface import TensorView

Tensors = Mapping[str, TensorView]


class Runner(abc.ABC):
    """One stage, ready to run on the stream it was made for.

    Tensors are contiguous, of the shapes and element types the manifest declares: arrays on a CPU, addresses on
    CUDA. A runner allocates no results and keeps no reference to a tensor after it returns. Its work is in order
    with the rest of its stream. It is closed before the stream is.
    """

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory to be given before the first run; 0 for none."""
        return 0

    def set_workspace(self, memory: TensorView) -> None:
        """Use this memory, ``uint8 [workspace_bytes]``, from the next run on; it must outlive the last run."""
        raise ValueError(f"{type(self).__name__} needs no workspace, found {memory.nbytes} bytes")

    @abc.abstractmethod
    def __call__(self, tensors: Tensors) -> None:
        """Compute the stage's outputs from its inputs, all by name; tensors of other stages are left alone.

        On a CPU this returns when the outputs are there; on CUDA it has enqueued its work on the stream.

        Raises:
            EngineError: the stage failed; the message names it.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of sessions and memory. Idempotent."""
