"""The manifest of a bundle: what a model is made of, as plain typed data.

A model is a small graph of stages. A stage is a pure function of named tensors with static shapes.
The kinds:

    spectrogram   mix -> normalised spectrogram and its statistics      (host or device code)
    normalize     mix -> normalised waveform and its statistics
    graph         an ONNX graph: encoders, bottleneck, decoders, a fusing convolution
    inverse       estimate and statistics -> time signal of every source
    denormalize   waveform estimate and statistics -> time signal of every source
    sum           signals -> stems

Only ``graph`` stages must have a file. The other kinds are computed by the host on a CPU; where they carry
a file, it is their device form, a graph of the same inputs and outputs for engines that run on a GPU.

Shapes: ``B`` batch, ``C`` audio channels, ``S`` sources, ``L`` samples of a segment, ``F`` bins,
``T`` frames; spectrograms are complex-as-channels, ``[B, 2C, F, T]``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

FORMAT = "mrsep-deploy bundle"
FORMAT_VERSION = 1

StageKind = Literal["spectrogram", "normalize", "graph", "inverse", "denormalize", "sum"]
STAGE_KINDS: tuple[StageKind, ...] = (
    "spectrogram",
    "normalize",
    "graph",
    "inverse",
    "denormalize",
    "sum",
)
Layout = Literal["split", "whole"]

MIX = "mix"
STEMS = "stems"


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and element type of one tensor that passes between stages."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Branch:
    """One path through the model: a spectrogram resolution, or the waveform (``n_fft`` 0).

    Attributes:
        name: ``2048`` or ``time``; the second half of a stage's name.
        n_fft, hop: analysis in samples; 0 for the waveform branch.
        bins, frames: size of the spectrogram; 0 and the segment's samples for the waveform branch.
        gains: weight of this branch's signal in each source, the learnt fusion weights; they are
            constants, so they cost nothing where the signal is de-normalised.
    """

    name: str
    n_fft: int
    hop: int
    bins: int
    frames: int
    gains: tuple[float, ...]

    @property
    def is_waveform(self) -> bool:
        return self.n_fft == 0


@dataclass(frozen=True)
class Stage:
    """One step. ``branch`` names the branch it belongs to, or is ``shared``."""

    name: str
    kind: StageKind
    branch: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    file: str | None = None
    parameters: int = 0
    macs: int = 0


@dataclass(frozen=True)
class ModelInfo:
    """What the model separates. ``segment`` is the length of a segment in seconds."""

    family: str
    sources: tuple[str, ...]
    sample_rate: int
    audio_channels: int
    segment: Fraction
    segment_samples: int
    trained: bool
    parameters: int
    config: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class FileInfo:
    """Size and hash of one file of a bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class FusionShares:
    """Learnt weights per resolution, for people to look at; each row sums to one.

    ``where`` is ``bottleneck`` or ``output``; ``sources`` has one name a row, or is empty when all
    sources share one row.
    """

    where: str
    sources: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Manifest:
    """Everything a bundle says of itself.

    Attributes:
        float32: what the model's family adds to the rules of lower precision: by rule, by stage, patterns of the names
            of the nodes that stay in float32. A general rule has no patterns: the family expects it to match there.
    """

    name: str
    model: ModelInfo
    branches: tuple[Branch, ...]
    tensors: tuple[TensorSpec, ...]
    stages: tuple[Stage, ...]
    layout: Layout
    batch: int
    opset: int
    precision: str
    files: Mapping[str, FileInfo]
    float32: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    fusion: tuple[FusionShares, ...] = ()
    checks: Mapping[str, object] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)

    def tensor(self, name: str) -> TensorSpec:
        """The tensor of that name (``KeyError`` if there is none)."""
        for spec in self.tensors:
            if spec.name == name:
                return spec
        raise KeyError(name)

    def branch(self, name: str) -> Branch:
        """The branch of that name (``KeyError`` if there is none)."""
        for branch in self.branches:
            if branch.name == name:
                return branch
        raise KeyError(name)

    @property
    def graph_stages(self) -> tuple[Stage, ...]:
        return tuple(stage for stage in self.stages if stage.kind == "graph")

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one segment (batch of one), over all graphs."""
        return sum(stage.macs for stage in self.stages)
