"""Small models of every family whose parameters all matter, and how far two signals are apart."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn

from mrsep_deploy.bundle.manifest import Layout
from mrsep_deploy.export.families import FAMILIES
from mrsep_deploy.export.families.demucs.config import parse_config
from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.families.demucs.variants import build_model
from mrsep_deploy.export.families.staged import StagedModel

DEMUCS = FAMILIES["demucs"]

SOURCES = ["drums", "bass", "other", "vocals", "guitar", "piano"]

SMALL: dict[str, object] = {
    "sources": SOURCES[:2],
    "channels": 4,
    "depth": 3,
    "dconv_comp": 2,
    "samplerate": 2000,
    "segment": 1.0,
}
"""2000 samples, three layers: every kind of layer in some ten milliseconds."""

_HTDEMUCS: dict[str, object] = {"nfft": 512, "t_layers": 3, "t_heads": 2, "t_hidden_scale": 2.0}
_SEVERAL: dict[str, object] = {
    "nfft_list": [256, 512, 1024],
    "t_layers": 3,
    "t_heads": 2,
    "t_hidden_scale": 2.0,
}
_PAIR: dict[str, object] = {**_SEVERAL, "nfft_list": [256, 512]}

MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "htdemucs": ("htdemucs", {**_HTDEMUCS, "bottom_channels": 8}),
    "htdemucs-dconv-3": ("htdemucs", {**_HTDEMUCS, "dconv_mode": 3, "norm_starts": 1, "norm_groups": 2}),
    "htdemucs-no-transformer": ("htdemucs", {**_HTDEMUCS, "t_layers": 0, "bottom_channels": 8}),
    "htdemucs-group-norms": (
        "htdemucs",
        {
            **_HTDEMUCS,
            "t_group_norm": True,
            "t_norm_in": False,
            "t_norm_in_group": True,
            "t_norm_first": False,
        },
    ),
    "htdemucs-merged": (
        "htdemucs",
        {"nfft": 64, "depth": 4, "t_layers": 0, "channels_time": 6, "dconv_mode": 3},
    ),
    "htdemucs-merged-transformer": ("htdemucs", {**_HTDEMUCS, "nfft": 256}),
    "htdemucs_n": ("htdemucs_n", {**_SEVERAL, "norm_starts": 2}),
    "htdemucs_n-no-transformer": ("htdemucs_n", {**_SEVERAL, "t_layers": 0, "channels_time": 6}),
    "htdemucs_nn": ("htdemucs_nn", {**_SEVERAL, "bottom_channels": 8, "t_cross_first": True}),
    "htdemucs_nn-twice-512": ("htdemucs_nn", {**_SEVERAL, "nfft_list": [512, 256, 512, 512]}),
    "htdemucs_2nn": ("htdemucs_2nn", _SEVERAL),
    "htdemucs_nf": ("htdemucs_nf", {"nfft_list": [256, 512], "norm_starts": 2}),
    "htdemucs_nf-no-rewrite": ("htdemucs_nf", {"nfft_list": [256, 512], "rewrite": False, "freq_emb": 0}),
    "htdemucs_dnf": ("htdemucs_dnf", {"nfft_list": [256, 512, 1024], "t_channels": 4, "dconv_mode": 3}),
    "mrhdemucs": ("mrhdemucs", {"nfft_list": [256, 512, 1024]}),
    "mrhdemucs-waveform": ("mrhdemucs", {"nfft_list": [256, 512], "waveform": True}),
    "mrhdemucs-linear": ("mrhdemucs", {**_PAIR, "t_layer_scale": False}),
    "mrhdemucs-softmax": ("mrhdemucs", {**_PAIR, "attention": "softmax", "bottom_channels": 8}),
    "mrhdemucs-linear-waveform": ("mrhdemucs", {**_PAIR, "waveform": True}),
    "mrhdemucs-softmax-waveform": ("mrhdemucs", {**_PAIR, "waveform": True, "attention": "softmax"}),
}
"""Family and arguments of models that between them have every stage and every way to join them."""


def make(family: str, arguments: dict[str, object], seed: int = 0) -> SeparationModel:
    """A small model with parameters that all matter."""
    config, _ = parse_config(family, (), {**SMALL, **arguments})
    with torch.device("meta"):  # initialising costs more than a run
        model = build_model(config)
    model = model.to_empty(device="cpu")
    randomise(model, seed)
    return model.requires_grad_(False)


def staged(model: SeparationModel, layout: Layout = "split") -> StagedModel:
    """A model cut into stages."""
    return StagedModel(DEMUCS, model, layout)


def rewritten(model: SeparationModel, rewrites: Collection[str] = tuple(DEMUCS.rewrites)) -> SeparationModel:
    """A copy with these rewrites in place."""
    copied = copy.deepcopy(model)
    DEMUCS.rewrite(copied, rewrites)
    return copied


def named(name: str) -> SeparationModel:
    """A model of ``MODELS``."""
    return make(*MODELS[name])


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Draw every parameter so that none is hidden.

    Fresh layer scales are 1e-3 and 1e-4, fresh norms do nothing and fresh fusion weights are equal: with
    those, whole branches could be wrong and the output right to four digits.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        last = name.rpartition(".")[2]
        if last == "scale":
            drawn = 0.6 + 0.2 * drawn
        elif last.endswith("bias"):
            drawn = 0.3 * drawn
        elif "embedding" in name:
            drawn = 0.2 * drawn
        elif parameter.dim() > 1 and not last.endswith("fusion_weights"):
            drawn = drawn / max(1, parameter[0].numel()) ** 0.5
        elif not last.endswith("fusion_weights"):
            drawn = 1 + 0.3 * drawn
        parameter.data.copy_(drawn)


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """White noise with another gain and offset per item and channel, as no two songs are alike."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    gain = 0.2 + torch.rand((*shape[:-1], 1), generator=generator, dtype=torch.float64)
    offset = 0.1 * torch.randn((*shape[:-1], 1), generator=generator, dtype=torch.float64)
    return (gain * x + offset).to(dtype)


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())
