"""The graph stages of a model as torch modules: what becomes one ONNX graph each.

A part wraps the model it is cut from, so the parts of a rewritten model are the rewritten parts.
Inputs and outputs are positional tensors; :mod:`mrsep_deploy.export.families.demucs.stages` names them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mrsep_deploy.export.families.demucs.model import SeparationModel


class Part(nn.Module):
    """Base: holds the whole model; ``owned`` tells which of its parameters this part computes with."""

    def __init__(self, model: SeparationModel) -> None:
        super().__init__()
        self.model = model

    def owned(self) -> list[nn.Module | nn.Parameter]:
        """The parameters this part computes with."""
        raise NotImplementedError

    @property
    def parameter_count(self) -> int:
        seen = {
            id(p): p.numel()
            for thing in self.owned()
            for p in ([thing] if isinstance(thing, nn.Parameter) else thing.parameters())
        }
        return sum(seen.values())


class SpectrogramEncoder(Part):
    """Normalised spectrogram (and what a merging waveform branch injects) -> skips, outermost first."""

    def __init__(self, model: SeparationModel, branch: int) -> None:
        super().__init__(model)
        self.branch = branch

    def owned(self) -> list[nn.Module | nn.Parameter]:
        encoder, _, embedding = self.model.branches[self.branch]
        return [encoder] if embedding is None else [encoder, embedding]

    def forward(self, x: Tensor, inject: Tensor | None = None) -> tuple[Tensor, ...]:
        return tuple(self.model.encode_spectrogram(self.branch, x, inject))


class WaveformEncoder(Part):
    """Normalised waveform -> skips, outermost first."""

    def owned(self) -> list[nn.Module | nn.Parameter]:
        return [self.model.tencoder]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode_waveform(x))


class Bottleneck(Part):
    """Innermost features of all branches -> the same, transformed (the waveform's last)."""

    def owned(self) -> list[nn.Module | nn.Parameter]:
        if self.model.crosstransformer is None:  # published classes make the rest all the same
            return []
        names = ["crosstransformer"]
        names += [f"channel_{way}sampler{side}" for way in ("up", "down") for side in ("", "_t")]
        owned: list[nn.Module | nn.Parameter] = [
            module for name in names if (module := getattr(self.model, name, None)) is not None
        ]
        weights = getattr(self.model, "fusion_weights", None)
        return [*owned, weights] if isinstance(weights, nn.Parameter) else owned

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        waveform = self.model.config.waveform
        xs, xt = self.model.bottleneck(
            features[:-1] if waveform else features, features[-1] if waveform else None
        )
        # A merged waveform branch continues from the spectrogram decoder, not from here.
        return (*xs, xt) if xt is not None and self.model.plan.merge is None else tuple(xs)


class SpectrogramDecoder(Part):
    """Features from the bottleneck and skips (outermost first) -> estimate ``[B, S*2C, F, T]``."""

    def __init__(self, model: SeparationModel, branch: int) -> None:
        super().__init__(model)
        self.branch = branch

    def owned(self) -> list[nn.Module | nn.Parameter]:
        return [self.model.branches[self.branch][1]]

    def forward(self, x: Tensor, *skips: Tensor) -> tuple[Tensor, ...]:
        return decode_spectrogram(self.model, self.branch, x, skips)


class WaveformDecoder(Part):
    """Features and skips (outermost first) -> estimate ``[B, S*C, L]``."""

    def owned(self) -> list[nn.Module | nn.Parameter]:
        return [self.model.tdecoder]

    def forward(self, x: Tensor, *skips: Tensor) -> tuple[Tensor, ...]:
        return (self.model.decode_waveform(x, skips),)


class SpectrogramBranch(Part):
    """Encoder and decoder of a branch that meets no bottleneck, joined."""

    def __init__(self, model: SeparationModel, branch: int) -> None:
        super().__init__(model)
        self.branch = branch

    def owned(self) -> list[nn.Module | nn.Parameter]:
        encoder, decoder, embedding = self.model.branches[self.branch]
        return [encoder, decoder] if embedding is None else [encoder, decoder, embedding]

    def forward(self, x: Tensor, inject: Tensor | None = None) -> tuple[Tensor, ...]:
        skips = self.model.encode_spectrogram(self.branch, x, inject)
        return decode_spectrogram(self.model, self.branch, skips[-1], skips)


class WaveformBranch(Part):
    """The waveform branch of a model without a bottleneck, encoder and decoder joined."""

    def owned(self) -> list[nn.Module | nn.Parameter]:
        return [self.model.tencoder, self.model.tdecoder]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        skips = self.model.encode_waveform(x)
        return (self.model.decode_waveform(skips[-1], skips),)


class Core(Part):
    """Everything between the spectrograms and their inverses as one graph (``--layout whole``)."""

    def owned(self) -> list[nn.Module | nn.Parameter]:
        model = self.model
        owned = [o for i in range(len(model.branches)) for o in SpectrogramBranch(model, i).owned()]
        if model.config.waveform:
            owned += WaveformBranch(model).owned()
        return owned + Bottleneck(model).owned()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        count = len(model.branches)
        wave = model.encode_waveform(inputs[count]) if model.config.waveform else []
        inject = wave[-1] if model.plan.merge is not None else None
        encoded = [model.encode_spectrogram(i, inputs[i], inject) for i in range(count)]
        xs, xt = model.bottleneck([skips[-1] for skips in encoded], wave[-1] if wave else None)
        estimates: list[Tensor] = []
        for i in range(count):
            estimate, *before = decode_spectrogram(model, i, xs[i], encoded[i])
            estimates.append(estimate)
            xt = before[0] if before else xt
        if xt is not None:
            estimates.append(model.decode_waveform(xt, wave))
        return tuple(estimates)


class Fusion(Part):
    """Signals ``[B, S, C, L]`` of the resolutions, then of the waveform -> stems ``[B, S, C, L]``."""

    def owned(self) -> list[nn.Module | nn.Parameter]:
        found = [getattr(self.model, name, None) for name in ("fusion_conv", "fusion_unet")]
        return [module for module in found if module is not None]

    def forward(self, *signals: Tensor) -> tuple[Tensor, ...]:
        waveform = self.model.config.waveform
        stems = self.model.fuse(signals[:-1] if waveform else signals, signals[-1] if waveform else None)
        return (stems,)


def decode_spectrogram(
    model: SeparationModel, branch: int, x: Tensor, skips: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The estimate and, where the model merges, what its waveform decoder continues from ``[B, C, T]``."""
    estimate, before = model.decode_spectrogram(branch, x, skips)
    if before is None:
        return (estimate,)
    return estimate, before.flatten(1, 2) if before.dim() == 4 else before


def count_macs(part: Part, inputs: Sequence[Tensor]) -> int:
    """Multiply-accumulates of one call, as torch's own counter sees convolutions and matrix products.

    Counted on shapes alone (the ``meta`` device): nothing is computed, and softmax attention is the
    matrix products it consists of. On a CPU it is a fused kernel, for which the counter has no formula.
    """
    from torch.utils.flop_counter import FlopCounterMode

    shapes = {name: p.to("meta") for name, p in part.state_dict().items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(part, shapes, tuple(x.to("meta") for x in inputs))
    return int(counter.get_total_flops() // 2)
