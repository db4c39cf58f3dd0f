"""A Demucs model as stages: which parts become graphs, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mrsep_deploy.bundle.manifest import STEMS, Branch, Transform
from mrsep_deploy.export.families.demucs.config import ModelConfig
from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.families.family import StageSource
from mrsep_deploy.export.families.staged import (
    SHARED,
    analysis,
    features,
    graph,
    signals,
    synthesis,
    tag,
    total,
)

TIME = "time"
Owned = list[nn.Module | nn.Parameter]


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


class Part(nn.Module):
    """One graph stage of a model.

    It holds the whole model, so that names in the graph are the published ones and rewriting the model
    rewrites its parts.

    Args:
        model: the model it is cut from.
        compute: from the model and the stage's inputs to a tuple of its outputs.
        owned: modules and parameters of the model that it computes with.
    """

    def __init__(
        self, model: SeparationModel, compute: Callable[..., tuple[Tensor, ...]], owned: Owned
    ) -> None:
        super().__init__()
        self.model, self.compute, self.owned = model, compute, owned

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.compute(self.model, *inputs)


def split(model: SeparationModel, branches: Sequence[Branch]) -> list[StageSource]:
    """The stages of ``model`` from ``mix`` to ``stems``; branches that meet no bottleneck are one graph each."""
    gains = [*model.gains, *(torch.ones(len(model.config.sources)) for b in branches if b.is_waveform)]
    graphs = _Graphs(model, branches)
    middle = graphs.joined_branches() if model.crosstransformer is None else graphs.around_bottleneck()
    ends = synthesis(branches, model.config.segment_samples, gains)
    return [*analysis(branches), *middle, *ends, _fusion(model, branches)]


def _fusion(model: SeparationModel, branches: Sequence[Branch]) -> StageSource:
    owned: Owned = [
        module
        for name in ("fusion_conv", "fusion_unet")
        if (module := getattr(model, name, None)) is not None
    ]
    if not owned:
        return total(branches)
    return graph("fusion", SHARED, signals(branches), [STEMS], Part(model, _fuse, owned))


class _Graphs:
    """The graphs between spectrograms and their inverses, in an order in which they can run."""

    def __init__(self, model: SeparationModel, branches: Sequence[Branch]) -> None:
        self.model = model
        self.spectrograms = [branch for branch in branches if not branch.is_waveform]
        self.waveform = [branch for branch in branches if branch.is_waveform]
        self.merge = model.plan.merge is not None

    def around_bottleneck(self) -> list[StageSource]:
        """An encoder and a decoder for every branch, and the bottleneck between them."""
        deepest = [self._skips(branch)[-1] for branch in (*self.spectrograms, *self.waveform)]
        # A merged waveform branch continues from the spectrogram's decoder, not from the bottleneck.
        behind = self.spectrograms if self.merge else [*self.spectrograms, *self.waveform]
        hidden = [f"hidden_{tag(branch.name)}" for branch in behind]
        stages = [self._waveform_encoder() for _ in self.waveform]  # first: a merging model's waits for it
        for index, branch in enumerate(self.spectrograms):
            encoder, _, embedding = self.model.branches[index]
            owned: Owned = [encoder] if embedding is None else [encoder, embedding]
            part = Part(self.model, partial(_encode, index), owned)
            stages.append(
                graph(f"encoder.{branch.name}", branch.name, self._inputs(branch), self._skips(branch), part)
            )
        part = Part(self.model, _bottleneck, _bottleneck_owned(self.model))
        stages.append(graph("bottleneck", SHARED, deepest, hidden, part))
        for index, branch in enumerate(self.spectrograms):
            part = Part(self.model, partial(_decode, index), [self.model.branches[index][1]])
            inputs = [hidden[index], *self._skips(branch)]
            stages.append(graph(f"decoder.{branch.name}", branch.name, inputs, self._estimate(branch), part))
        return stages + [self._waveform_decoder() for _ in self.waveform]

    def joined_branches(self) -> list[StageSource]:
        """Encoder and decoder of every branch in one graph; a merging waveform branch is two, around the other."""
        stages = []
        if self.merge:
            stages.append(self._waveform_encoder())
        elif self.waveform:
            part = Part(self.model, _waveform_branch, [self.model.tencoder, self.model.tdecoder])
            stages.append(graph("branch.time", TIME, ["waveform"], ["estimate_time"], part))
        for index, branch in enumerate(self.spectrograms):
            encoder, decoder, embedding = self.model.branches[index]
            owned: Owned = [encoder, decoder] if embedding is None else [encoder, decoder, embedding]
            part = Part(self.model, partial(_spectrogram_branch, index), owned)
            stages.append(
                graph(
                    f"branch.{branch.name}", branch.name, self._inputs(branch), self._estimate(branch), part
                )
            )
        return stages + ([self._waveform_decoder()] if self.merge else [])

    def _skips(self, branch: Branch) -> list[str]:
        """Outputs of a branch's encoder, outermost first."""
        plan = self.model.plan
        return [
            f"skip{i}_{tag(branch.name)}"
            for i in range(len(plan.waveform if branch.is_waveform else plan.spectrogram))
        ]

    def _inputs(self, branch: Branch) -> list[str]:
        injected = [self._skips(time)[-1] for time in self.waveform if self.merge]
        return [features(branch), *injected]

    def _estimate(self, branch: Branch) -> list[str]:
        estimate = f"estimate_{tag(branch.name)}"
        return [estimate, "before_time"] if self.merge else [estimate]

    def _waveform_encoder(self) -> StageSource:
        part = Part(self.model, _encode_waveform, [self.model.tencoder])
        return graph("encoder.time", TIME, ["waveform"], self._skips(self.waveform[0]), part)

    def _waveform_decoder(self) -> StageSource:
        part = Part(self.model, _decode_waveform, [self.model.tdecoder])
        skips = self._skips(self.waveform[0])
        # All skips but what a merging model injected.
        inputs = ["before_time", *skips[:-1]] if self.merge else ["hidden_time", *skips]
        return graph("decoder.time", TIME, inputs, ["estimate_time"], part)


# --- what the parts compute


def _encode(
    branch: int, model: SeparationModel, x: Tensor, inject: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Normalised spectrogram (and what a merging waveform branch injects) -> skips, outermost first."""
    return tuple(model.encode_spectrogram(branch, x, inject))


def _encode_waveform(model: SeparationModel, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(model.encode_waveform(x))


def _decode(branch: int, model: SeparationModel, x: Tensor, *skips: Tensor) -> tuple[Tensor, ...]:
    """The estimate and, where the model merges, what its waveform decoder continues from ``[B, C, T]``."""
    estimate, before = model.decode_spectrogram(branch, x, skips)
    if before is None:
        return (estimate,)
    return estimate, before.flatten(1, 2) if before.dim() == 4 else before


def _decode_waveform(model: SeparationModel, x: Tensor, *skips: Tensor) -> tuple[Tensor, ...]:
    return (model.decode_waveform(x, skips),)


def _spectrogram_branch(
    branch: int, model: SeparationModel, x: Tensor, inject: Tensor | None = None
) -> tuple[Tensor, ...]:
    skips = _encode(branch, model, x, inject)
    return _decode(branch, model, skips[-1], *skips)


def _waveform_branch(model: SeparationModel, x: Tensor) -> tuple[Tensor, ...]:
    skips = _encode_waveform(model, x)
    return _decode_waveform(model, skips[-1], *skips)


def _bottleneck(model: SeparationModel, *deepest: Tensor) -> tuple[Tensor, ...]:
    """Innermost features of all branches -> the same, transformed (the waveform's last)."""
    waveform = model.config.waveform
    xs, xt = model.bottleneck(deepest[:-1] if waveform else deepest, deepest[-1] if waveform else None)
    return (*xs, xt) if xt is not None and model.plan.merge is None else tuple(xs)


def _bottleneck_owned(model: SeparationModel) -> Owned:
    names = [
        "crosstransformer",
        *(f"channel_{way}sampler{side}" for way in ("up", "down") for side in ("", "_t")),
    ]
    owned: Owned = [module for name in names if (module := getattr(model, name, None)) is not None]
    weights = getattr(model, "fusion_weights", None)
    return [*owned, weights] if isinstance(weights, nn.Parameter) else owned


def _fuse(model: SeparationModel, *signals: Tensor) -> tuple[Tensor, ...]:
    """Signals ``[B, S, C, L]`` of the resolutions, then of the waveform -> stems ``[B, S, C, L]``."""
    waveform = model.config.waveform
    return (model.fuse(signals[:-1] if waveform else signals, signals[-1] if waveform else None),)
