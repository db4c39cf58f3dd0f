"""The manifest of a bundle: what a model is made of, as plain typed data.

A model is a small graph of stages. A stage is a pure function of named tensors, whose shapes are static but for the
first axis, the items of a batch. The kinds:

    spectrogram   mix -> normalised spectrogram and its statistics      (host or device code)
    normalize     mix -> normalised waveform and its statistics
                  (without statistics where the branch is not normalised; so do the two below)
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

import builtins
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Annotated, Literal

from msgspec import Meta

from mrsep_deploy.bundle.licence import UNSTATED, Licence
from mrsep_deploy.files.typed_json import Name, Sha256

FORMAT = "mrsep-deploy bundle"
FORMAT_VERSION = 2

StageKind = Literal["spectrogram", "normalize", "graph", "inverse", "denormalize", "sum"]
Layout = Literal["split", "whole"]
Last = Literal["centred", "filled"]

MIX = "mix"
STEMS = "stems"

BATCH = "batch"
"""Name of the first dimension of every tensor, in manifests and graphs."""

MAX_BATCH = 1024
MAX_SAMPLES = 2**31
MAX_WINDOW = 2**20
DTYPES = ("float32", "float16", "float64", "int32", "int64")

Dtype = Annotated[str, Meta(pattern=rf"\A({'|'.join(DTYPES)})\Z", description=f"one of {', '.join(DTYPES)}")]
Size = Annotated[int, Meta(ge=1, le=MAX_SAMPLES)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Tensors = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=256)]
Shares = Annotated[tuple[float, ...], Meta(min_length=1, max_length=16)]
Patterns = Annotated[tuple[Annotated[str, Meta(max_length=512)], ...], Meta(max_length=256)]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and element type of one tensor that passes between stages."""

    name: Name
    shape: Annotated[tuple[Size, ...], Meta(min_length=1, max_length=16)]
    dtype: Dtype = "float32"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Transform:
    """A short-time Fourier transform of a segment, and its inverse: all that computing them takes.

    Frame ``t`` holds the samples from ``t * hop - offset`` on, ``n_fft`` of them. Synthesis adds the windowed
    frames up and divides by the windows squared, added up the same way.

    Attributes:
        n_fft, hop: length of a frame, and from one frame to the next, in samples.
        frames: how many frames a segment has.
        bins: of a spectrogram: ``n_fft / 2 + 1``, or one less where the Nyquist bin is left out.
        offset: samples by which frame 0 begins before the segment.
        after: samples that the segment is extended by behind its end; frames may leave some of them out.
        window: a periodic Hann window of ``n_fft`` samples.
        scale: spectra are multiplied by ``1 / sqrt(n_fft)``, or as they are.
        padding: what lies before and behind the segment: its reflection, or zeros.
        envelope: synthesis divides by the squared windows of the frames there are, of these ``extended`` by two at
            each end, or of an ``endless`` row of them.
        delay: samples by which the synthesis gives everything later than the analysis took it.
    """

    n_fft: Annotated[int, Meta(ge=2, le=MAX_WINDOW)]
    hop: Annotated[int, Meta(ge=1, le=MAX_WINDOW)]
    frames: Size
    bins: Annotated[int, Meta(ge=1, le=MAX_WINDOW)]
    offset: Annotated[int, Meta(ge=0, le=MAX_WINDOW)]
    after: Annotated[int, Meta(ge=0, le=2 * MAX_WINDOW)]
    window: Literal["hann"] = "hann"
    scale: Literal["orthonormal", "none"] = "orthonormal"
    padding: Literal["reflect", "zeros"] = "reflect"
    envelope: Literal["endless", "frames", "extended"] = "endless"
    delay: Annotated[int, Meta(ge=0, le=MAX_WINDOW)] = 0

    @property
    def nyquist(self) -> bool:
        """Whether spectrograms hold the Nyquist bin."""
        return self.bins > self.n_fft // 2

    @property
    def overlap(self) -> int:
        """How many hops a frame covers, the last one perhaps in part."""
        return -(-self.n_fft // self.hop)

    @property
    def lead(self) -> int:
        """Samples by which frame 0 begins before the segment in the synthesis."""
        return self.offset - self.delay

    @property
    def span(self) -> int:
        """Samples from the beginning of the first frame to the end of the last one."""
        return (self.frames - 1) * self.hop + self.n_fft


@dataclass(frozen=True)
class Branch:
    """One path through the model: a spectrogram resolution, or the waveform.

    Attributes:
        name: ``2048`` or ``time``; the second half of a stage's name.
        gains: weight of this branch's signal in each source, the learnt fusion weights; they are
            constants, so they cost nothing where the signal is de-normalised.
        normalise: whether graphs read the branch's input less its mean, over its standard deviation.
        transform: of the spectrogram; None for the waveform.
    """

    name: Name
    gains: Annotated[tuple[float, ...], Meta(max_length=64)]
    normalise: bool = field(default=True, kw_only=True)
    transform: Transform | None = None

    @property
    def is_waveform(self) -> bool:
        return self.transform is None


@dataclass(frozen=True)
class Application:
    """How a song is cut into segments, and how these are put together again.

    Attributes:
        normalise: whether the model gets the song less its mean, over its standard deviation, or as it is.
        weights: of a segment's samples in the sum: a triangle, or ones with a linear fade at both ends.
        fade: samples of each linear fade; 0 for a triangle.
        overlap: share of a segment that the next one repeats, if none is asked for.
        edges: a song begins with its first segment, or is ``reflected`` at both ends by what segments overlap
            (if it is longer than twice that).
        last: a segment that reaches beyond the end is ``centred`` in what comes before it, or ``filled`` up with
            its own reflection (if it has more than half of its samples) or zeros.
        context: samples that the model takes beyond a segment, half of them from before it.
    """

    normalise: Literal["song", "none"] = "song"
    weights: Literal["triangle", "linear"] = "triangle"
    fade: Annotated[int, Meta(ge=0, le=MAX_SAMPLES)] = 0
    overlap: Annotated[float, Meta(ge=0, le=0.99)] = 0.25
    edges: Literal["context", "reflected"] = "context"
    last: Last = "centred"
    context: Annotated[int, Meta(ge=0, le=MAX_SAMPLES)] = 0


@dataclass(frozen=True)
class Stage:
    """One step. ``branch`` names the branch it belongs to, or is ``shared``.

    ``twin`` is the same graph in float32, which a bundle of lower precision has beside its own (see ``Gate``).
    """

    name: Name
    kind: StageKind
    branch: Name
    inputs: Tensors
    outputs: Tensors
    file: Name | None = None
    parameters: Count = 0
    macs: Count = 0
    twin: Name | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What the model separates. ``segment`` is the length of a segment in seconds."""

    family: Name
    sources: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=64)]
    sample_rate: Annotated[int, Meta(ge=1000, le=768_000)]
    audio_channels: Annotated[int, Meta(ge=1, le=64)]
    segment: Annotated[Fraction, Meta(description='seconds as a fraction, "39/5"')]
    segment_samples: Size
    trained: bool
    parameters: Count
    config: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class FileInfo:
    """Size and hash of one file of a bundle."""

    sha256: Sha256
    bytes: Annotated[int, Meta(ge=0, le=2**31)]  # a protobuf, and so an ONNX graph, cannot be larger

    @classmethod
    def of(cls, data: builtins.bytes) -> FileInfo:
        """Of a file's content."""
        return cls(hashlib.sha256(data).hexdigest(), len(data))


@dataclass(frozen=True)
class FusionShares:
    """Learnt weights per resolution, for people to look at; each row sums to one.

    ``where`` is ``bottleneck`` or ``output``; ``sources`` has one name a row, or is empty when all
    sources share one row.
    """

    where: Literal["bottleneck", "output"]
    sources: Annotated[tuple[Name, ...], Meta(max_length=64)]
    weights: Annotated[tuple[Shares, ...], Meta(min_length=1, max_length=64)]


@dataclass(frozen=True)
class Gate:
    """Which segments run in float32 where all others run in lower precision: those it would lose.

    A model scales a segment by its spread. Where a segment is almost silent but for a brief sound, the sound is scaled
    up far beyond what the model was trained on, and rounding errors with it.

    Attributes:
        burstiness: largest burstiness of a segment's mix that runs in lower precision (see ``separation.gate``).
        tried, missed: segments below it on which a calibration has tried it, and how many of them failed.
    """

    burstiness: Annotated[float, Meta(ge=0, le=1e9)]
    tried: Count = 0
    missed: Count = 0


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a bundle says of itself, at the batch it is opened at.

    Attributes:
        tensors: their first dimension is the batch, which is no part of the bundle.
        float32: what the model's family adds to the rules of lower precision: by rule, by stage, patterns of the names
            of the nodes that stay in float32. A general rule has no patterns: the family expects it to match there.
        licence: of the weights; bundles written before there was this field have none that is stated.
        gates: by element type of lower precision, what a calibration has found for it.
    """

    name: Name
    model: ModelInfo
    layout: Layout
    opset: Annotated[int, Meta(ge=1, le=1000)]
    precision: Name
    float32: Mapping[Name, Annotated[Mapping[Name, Patterns], Meta(max_length=64)]] = field(
        default_factory=dict
    )
    gates: Annotated[Mapping[Name, Gate], Meta(max_length=8)] = field(default_factory=dict)
    application: Application = Application()
    licence: Licence = UNSTATED
    branches: Annotated[tuple[Branch, ...], Meta(min_length=1, max_length=16)]
    tensors: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=1024)]
    stages: Annotated[tuple[Stage, ...], Meta(min_length=1, max_length=64)]
    fusion: Annotated[tuple[FusionShares, ...], Meta(max_length=16)] = ()
    files: Annotated[Mapping[Name, FileInfo], Meta(max_length=256)]
    checks: Mapping[str, object] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)

    def tensor(self, name: str) -> TensorSpec:
        """The tensor of that name (``KeyError`` if there is none)."""
        return {spec.name: spec for spec in self.tensors}[name]

    def branch(self, name: str) -> Branch:
        """The branch of that name (``KeyError`` if there is none)."""
        return {branch.name: branch for branch in self.branches}[name]

    def at_batch(self, batch: int) -> Manifest:
        """The same with ``batch`` segments in one run."""
        tensors = (replace(tensor, shape=(batch, *tensor.shape[1:])) for tensor in self.tensors)
        return replace(self, tensors=tuple(tensors))

    @property
    def batch(self) -> int:
        """Segments in one run."""
        return self.tensors[0].shape[0]

    @property
    def kept_samples(self) -> int:
        """Samples of a segment's stems that count: what the model takes, less its context."""
        return self.model.segment_samples - self.application.context

    def takes_segment(self, seconds: float) -> bool:
        """Whether segments may be so long: as long as what counts of one, whose seconds are rounded, or shorter."""
        return 0 < seconds < (self.kept_samples + 1) / self.model.sample_rate

    @property
    def graph_stages(self) -> tuple[Stage, ...]:
        return tuple(stage for stage in self.stages if stage.kind == "graph")

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one segment (batch of one), over all graphs."""
        return sum(stage.macs for stage in self.stages)
