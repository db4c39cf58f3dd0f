"""What a family of models is to the rest of the program: one object, and the records it answers with.

Importing this module needs no PyTorch; a family imports it in the methods that make modules.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from mrsep_deploy.bundle.manifest import Application, Branch, FusionShares, Stage
from mrsep_deploy.export.checkpoint.config_file import ConfigFile

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Audio:
    """What a model separates: its sources, its sample rate in Hz, its audio channels, its segment in samples.

    ``application`` says how it is applied to a song.
    """

    sources: tuple[str, ...]
    sample_rate: int
    channels: int
    segment_samples: int
    application: Application = field(default_factory=Application)


@dataclass(frozen=True)
class PaperModel:
    """A model of the tables. Rows with the same ``key`` are the same model, measured once."""

    key: str
    family: str
    arguments: Mapping[str, object] = field(default_factory=dict)


MODELS_TABLE = "Table 1: models"
"""Every family may have rows in it."""


@dataclass(frozen=True)
class PaperTable:
    """``rows`` are what stands in the first column, and the model. Tables of one title are one table."""

    title: str
    column: str
    rows: tuple[tuple[str, PaperModel], ...]


@dataclass(frozen=True)
class StageSource:
    """A stage, and the torch module that computes it.

    ``module`` takes the stage's inputs by position and returns a tuple of its outputs, in the precision of its
    inputs and weights. That of a stage of kind ``graph`` is what becomes the stage's ONNX graph.
    """

    stage: Stage
    module: nn.Module


class Family(abc.ABC):
    """Model classes that share code: how they are configured, built, cut into stages and rewritten.

    Everything after a family sees stages only. ``FAMILIES`` of :mod:`mrsep_deploy.export.families` is the table
    of all families; a family that stands there can be exported, counted and named on the command line.

    Attributes:
        name: of the family.
        variants: names of its models, as ``--untrained`` takes them.
        classes: qualified names of model classes in checkpoints, each with its variant.
        ignored_state: names of training state that checkpoints carry and models have no place for.
        any_segment: whether a trained model can be exported for segments of another length than its own.
        rewrites: exact rewrites that :meth:`rewrite` knows, each with what it does.
        opset: of the graphs: 20 is read by ONNX Runtime, OpenVINO and TensorRT from 10.9; 23 has attention as one
            operator, which TensorRT reads from 10.14.
    """

    name: ClassVar[str]
    variants: ClassVar[tuple[str, ...]]
    classes: ClassVar[Mapping[str, str]] = {}
    ignored_state: ClassVar[tuple[str, ...]] = ()
    any_segment: ClassVar[bool] = False
    rewrites: ClassVar[Mapping[str, str]] = {}
    opset: ClassVar[int] = 20

    @abc.abstractmethod
    def config(
        self, variant: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[Any, list[str]]:
        """The structure that constructor arguments ask for, a dataclass, and the arguments without effect on it.

        Raises:
            CheckpointError: an argument is unknown or impossible; the message names it.
        """

    def from_file(self, file: ConfigFile, names: Collection[str]) -> tuple[str, dict[str, object]] | None:
        """The variant and the constructor arguments of a bare state dict, or None where it is not of this family.

        Args:
            file: the configuration that came with it.
            names: of its parameters.

        Raises:
            CheckpointError: it is of this family, but of a variant that is not supported, or the file lacks something.
        """
        return None

    def check_state(self, config: Any, state: Mapping[str, Tensor]) -> None:
        """Raises ``CheckpointError`` for values in a state dict that no model of this structure has."""
        return

    @abc.abstractmethod
    def model(self, config: Any) -> nn.Module:
        """A model in evaluation mode; its parameters have the names that checkpoints use."""

    @abc.abstractmethod
    def audio(self, config: Any) -> Audio:
        """What a model of this structure separates."""

    @abc.abstractmethod
    def branches(self, model: Any) -> tuple[Branch, ...]:
        """The branches of a model, with gains of one where the model is on the ``meta`` device."""

    @abc.abstractmethod
    def stages(self, model: Any, branches: Sequence[Branch]) -> list[StageSource]:
        """The stages from ``mix`` to ``stems``, in an order in which they can run."""

    def rewrite(self, model: Any, enabled: Collection[str]) -> None:
        """Replaces modules of ``model`` by others that compute the same function, better for engines.

        Args:
            enabled: names out of ``rewrites``; a family without any has nothing to replace.
        """
        unknown = set(enabled) - set(self.rewrites)
        if unknown:
            raise ValueError(f"unknown rewrites {sorted(unknown)}, expected some of {sorted(self.rewrites)}")
        model.requires_grad_(False)

    def applicable(self, model: Any) -> tuple[str, ...]:
        """The names among ``rewrites`` that find something to do in ``model``."""
        return tuple(self.rewrites)

    def float32(self, model: Any, stages: Sequence[Stage]) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """What lower precision leaves in float32 beyond the general rules, as a manifest's ``float32`` has it.

        Args:
            model: as it is exported, rewritten.
            stages: of the bundle.
        """
        return {}

    def shares(self, model: Any) -> tuple[FusionShares, ...]:
        """The learnt weights of the resolutions, at the bottleneck and at the output, if there are any."""
        return ()

    def paper_tables(self) -> tuple[PaperTable, ...]:
        """The tables of models in the paper that the family comes from, if there are any."""
        return ()

    def windows(self, variant: str, n_fft: Sequence[int]) -> dict[str, object]:
        """The constructor arguments that ask for spectrograms with these windows, in samples.

        Raises:
            UsageError: the variant cannot have as many.
        """
        return {"nfft_list": list(n_fft)}
