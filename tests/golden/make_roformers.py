"""Makes the small RoFormer references in this folder with the training toolkit's own classes, in float64.

    python -m venv reference
    reference/bin/pip install torch einops beartype librosa rotary-embedding-torch pyyaml
    reference/bin/pip install --no-deps msst==0.1.0
    reference/bin/python tests/golden/make_roformers.py

For each model: a state dict, its configuration, and a song with its stems. Weights are drawn. (Those of
``bs_roformer`` and ``mel_band_roformer_2``, with the published bands, came with the project.)
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from msst.models.bs_roformer import BSRoformer, MelBandRoformer
from torch import Tensor

FOLDER = Path(__file__).parent

COMMON = {"dim": 8, "depth": 2, "heads": 2, "dim_head": 6, "flash_attn": False}
MODELS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], int]] = {
    "roformer_small_bs": (
        BSRoformer,
        {
            **COMMON,
            "stereo": True,
            "num_stems": 2,
            "stft_n_fft": 1024,
            "stft_win_length": 1024,
            "stft_hop_length": 256,
            "freqs_per_bands": (4, 4, 16, 4, 16, 64, 64, 128, 213),
            "time_transformer_depth": 3,
            "freq_transformer_depth": 1,
            "mask_estimator_depth": 3,
            "mlp_expansion_factor": 1,
            "skip_connection": True,
            "zero_dc": False,
        },
        {"instruments": ["speech", "music"], "target": None, "chunk": 8000, "overlap": 3, "rate": 22050},
        30_000,
    ),
    "roformer_small_mel": (
        MelBandRoformer,
        {
            **COMMON,
            "dim": 4,
            "stereo": False,
            "num_bands": 20,
            "sample_rate": 44100,
            "stft_n_fft": 4096,
            "stft_win_length": 4096,
            "stft_hop_length": 882,
            "time_transformer_depth": 1,
            "freq_transformer_depth": 2,
            "mask_estimator_depth": 1,
            "mlp_expansion_factor": 1,
        },
        {
            "instruments": ["drums", "vocals"],
            "target": "vocals",
            "chunk": 17_640,
            "overlap": 2,
            "rate": 44100,
        },
        15_000,
    ),
}
"""Class, constructor arguments, what the other sections say, and samples of the song."""


def drawn(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Parameters that all matter, as exact in float32 as in float64."""
    for name, parameter in model.named_parameters():
        if name.endswith("rotary_embed.freqs"):
            continue
        value = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            value = value / math.sqrt(parameter.shape[1])
        elif name.endswith("gamma"):
            value = 1 + 0.3 * value
        else:
            value = 0.3 * value
        parameter.data.copy_(value.float().double())


def separated(model: torch.nn.Module, mix: Tensor, chunk: int, chunks: int) -> Tensor:
    """A song ``[C, n]`` in chunks, as the toolkit's ``demix`` joins them, each with fades of its own."""
    step, fade, length = chunk // chunks, chunk // 10, mix.shape[-1]
    border = chunk - step if length > 2 * (chunk - step) else 0
    mix = torch.nn.functional.pad(mix, (border, border), mode="reflect") if border else mix
    total, weights = torch.zeros(()), torch.zeros(mix.shape[-1])
    for start in range(0, mix.shape[-1], step):
        part = mix[:, start : start + chunk]
        size = part.shape[-1]
        mode = "reflect" if size > chunk // 2 else "constant"
        found = model(torch.nn.functional.pad(part, (0, chunk - size), mode=mode)[None])[0]
        found = found.reshape(-1, len(mix), chunk)
        window = torch.ones(chunk)
        if start > 0:
            window[:fade] = torch.linspace(0, 1, fade)
        if start + step < mix.shape[-1]:
            window[-fade:] = torch.linspace(1, 0, fade)
        if not total.dim():
            total = torch.zeros(len(found), *mix.shape)
        total[..., start : start + size] += found[..., :size] * window[:size]
        weights[start : start + size] += window[:size]
    return (total / weights)[..., border : border + length]


def main() -> None:
    torch.set_default_dtype(torch.float64)
    for index, (name, (kind, arguments, song, samples)) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(index)
        model = kind(**arguments).eval()
        drawn(model, generator)
        channels = 2 if arguments["stereo"] else 1
        tone = torch.sin(torch.arange(samples) * 0.05 * torch.arange(1, channels + 1)[:, None])
        mix = (0.1 * torch.randn(channels, samples, generator=generator) + 0.2 * tone).float()
        with torch.no_grad():
            stems = separated(model, mix.double(), song["chunk"], song["overlap"])
        torch.save({k: v.float() for k, v in model.state_dict().items()}, FOLDER / f"{name}.ckpt")
        config = {
            "audio": {"chunk_size": song["chunk"], "sample_rate": song["rate"], "hop_length": 441},
            "model": arguments,
            "training": {"instruments": song["instruments"], "target_instrument": song["target"]},
            "inference": {"num_overlap": song["overlap"]},
        }
        (FOLDER / f"{name}.yaml").write_text(yaml.dump(config))
        np.savez_compressed(
            FOLDER / f"{name}.npz",
            mix=mix.numpy(),
            stems=stems.numpy().astype(np.float32),
            num_overlap=song["overlap"],
        )


if __name__ == "__main__":
    main()
