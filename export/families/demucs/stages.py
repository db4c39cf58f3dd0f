"""A Demucs model as stages: which parts become graphs, and what passes between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mrsep_deploy.bundle.manifest import STEMS, Branch, Transform
from mrsep_deploy.export.families.demucs.config import ModelConfig
from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.families.family import StageSource
from mrsep_deploy.export.families.staged import (
    SHARED,
    Compute,
    Owned,
    Part,
    analysis,
    features,
    graph,
    signals,
    synthesis,
    tag,
    total,
)

TIME = "time"


def make_branches(config: ModelConfig, gains: Sequence[Sequence[float]] = ()) -> tuple[Branch, ...]:
    """The branches of a model, spectrograms in the order of ``nfft_list``, the waveform last.

    Args:
        config: its structure.
        gains: weight of each resolution's signal in each source; ones by default.
    """
    length, ones = config.segment_samples, (1.0,) * len(config.sources)
    branches = [
        Branch(name, tuple(gain), transform(n_fft, hop, length))
        for name, n_fft, hop, gain in zip(
            branch_names(config.nfft_list),
            config.nfft_list,
            config.hops,
            gains or [ones] * len(config.hops),
            strict=True,
        )
    ]
    return (*branches, Branch(TIME, ones, None)) if config.waveform else tuple(branches)


def transform(n_fft: int, hop: int, length: int) -> Transform:
    """The published transform of ``length`` samples: ``ceil(length / hop)`` frames without the Nyquist bin.

    Frame 0 begins 3/8 of a window before the segment where the hop is a quarter of it, else one hop before.
    """
    frames = -(-length // hop)
    offset = 3 * (hop // 2) if hop * 4 == n_fft else hop
    return Transform(n_fft, hop, frames, n_fft // 2, offset, after=offset + frames * hop - length)


def branch_names(nfft_list: tuple[int, ...]) -> list[str]:
    """Names of the resolutions; a resolution that occurs again gets a suffix (``2048-2``)."""
    names: list[str] = []
    for index, n_fft in enumerate(nfft_list):
        repeat = nfft_list[:index].count(n_fft)
        names.append(f"{n_fft}-{repeat + 1}" if repeat else str(n_fft))
    return names


def split(model: SeparationModel, branches: Sequence[Branch]) -> list[StageSource]:
    """The stages of ``model`` from ``mix`` to ``stems``; branches that meet no bottleneck are one graph each."""
    gains = [*model.gains, *(torch.ones(len(model.config.sources)) for b in branches if b.is_waveform)]
    graphs = _Graphs(model, branches)
    middle = graphs.joined_branches() if model.crosstransformer is None else graphs.around_bottleneck()
    ends = synthesis(branches, model.config.segment_samples, gains)
    fusion = total(branches)
    if model.fusion is not None:
        part = Part(model, lambda model, *x: model.fuse(*x), [model.fusion])
        fusion = graph("fusion", SHARED, signals(branches), [STEMS], part)
    return [*analysis(branches), *middle, *ends, fusion]


class _Graphs:
    """The graphs between spectrograms and their inverses, in an order in which they can run."""

    def __init__(self, model: SeparationModel, branches: Sequence[Branch]) -> None:
        self.model, self.branches = model, branches
        self.spectrograms = [branch for branch in branches if not branch.is_waveform]
        self.waveform = [branch for branch in branches if branch.is_waveform]
        self.merge = model.plan.merge is not None

    def around_bottleneck(self) -> list[StageSource]:
        """An encoder and a decoder for every branch, and the bottleneck between them."""
        deepest = [self._skips(branch)[-1] for branch in self.branches]
        # A merged waveform branch continues from the spectrogram's decoder, not from the bottleneck.
        hidden = [self._hidden(branch) for branch in self.branches if not (self.merge and branch.is_waveform)]
        part = Part(self.model, lambda model, *x: model.bottleneck(*x), _bottleneck_owned(self.model))
        return [
            # first: a merging model's waits for it
            *(self._stage("encoder", branch) for branch in (*self.waveform, *self.spectrograms)),
            graph("bottleneck", SHARED, deepest, hidden, part),
            *(self._stage("decoder", branch) for branch in self.branches),
        ]

    def joined_branches(self) -> list[StageSource]:
        """Encoder and decoder of every branch in one graph; a merging waveform branch is two, around the other."""
        joined = [self._stage("branch", branch) for branch in self.spectrograms]
        if self.merge:
            (time,) = self.waveform
            return [self._stage("encoder", time), *joined, self._stage("decoder", time)]
        return [*(self._stage("branch", time) for time in self.waveform), *joined]

    def _stage(self, side: str, branch: Branch) -> StageSource:
        """The ``encoder`` or the ``decoder`` of a branch, or both in one, a ``branch``."""
        index = self.branches.index(branch)
        encoder, decoder, embedding = self.model.branches[index]
        skips, read, made = self._skips(branch), [features(branch)], [f"estimate_{tag(branch.name)}"]
        continued = [self._hidden(branch), *skips]
        if self.merge and branch.is_waveform:
            continued = ["before_time", *skips[:-1]]  # all but what it injected
        elif self.merge:
            read.append(self._skips(self.waveform[0])[-1])
            made.append("before_time")
        encoding: Owned = [encoder] if embedding is None else [encoder, embedding]
        sides: dict[str, tuple[Compute, list[str], list[str], Owned]] = {
            "encoder": (SeparationModel.encode, read, skips, encoding),
            "decoder": (SeparationModel.decode, continued, made, [decoder]),
            "branch": (SeparationModel.encode_and_decode, read, made, [*encoding, decoder]),
        }
        compute, inputs, outputs, owned = sides[side]
        part = Part(self.model, lambda model, *x: compute(model, index, *x), owned)
        return graph(f"{side}.{branch.name}", branch.name, inputs, outputs, part)

    def _skips(self, branch: Branch) -> list[str]:
        """Outputs of a branch's encoder, outermost first."""
        encoder, _, _ = self.model.branches[self.branches.index(branch)]
        return [f"skip{index}_{tag(branch.name)}" for index in range(len(encoder))]

    def _hidden(self, branch: Branch) -> str:
        return f"hidden_{tag(branch.name)}"


def _bottleneck_owned(model: SeparationModel) -> Owned:
    adapters = [f"channel_{way}sampler{side}" for way in ("up", "down") for side in ("", "_t")]
    names = ["crosstransformer", *adapters, "fusion_weights"]
    return [part for name in names if (part := getattr(model, name, None)) is not None]
