"""From the configuration of the training toolkit and the names in a state dict to a model's arguments."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.config_file import ConfigFile
from mrsep_deploy.export.checkpoint.values import shown
from mrsep_deploy.export.families.roformer.config import BS, FIX, MEL, RoformerConfig

if TYPE_CHECKING:
    from torch import Tensor

OURS = "band_split.to_features.0.0.gamma"
"""A parameter that every checkpoint of the family has."""

UNSUPPORTED: Mapping[str, str] = {
    r"\.branch\.|hyper_conn|static_alpha|dynamic_alpha": "hyper-connections",
    r"value_residual": "value residuals",
    r"\.temperature$": "linear attention (linear_transformer_depth above 0)",
    r"linear_62_bias|to_qkv\.bias": "shared biases (use_shared_bias)",
    r"pope": "PoPE instead of rotary embeddings",
    r"conv": "a conformer",
    r"segm": "segmentation mask heads",
    r"^mask_estimators\.\d+\.(?!to_freqs\.\d+\.0\.\d+\.(weight|bias)$)": "mask heads of another kind",
}
"""Variants by what names of their parameters have, which no other has."""

MOST_ROTATION_ERROR = 1e-3
"""Relative; frequencies stored in float16 are off by half of it."""

_MASK_LAYER = re.compile(r"mask_estimators\.0\.to_freqs\.0\.0\.\d+\.weight")


def arguments(file: ConfigFile, names: Collection[str]) -> tuple[str, dict[str, object]] | None:
    """The model and its arguments, or None where the names are not of this family.

    Raises:
        CheckpointError: it is a variant that is not supported, or the configuration lacks what it takes.
    """
    if OURS not in names:
        return None
    _require_supported(names)
    model, kind = dict(file.model), BS if "final_norm.gamma" in names else MEL
    for name in ("dim", "depth"):
        if name not in model:
            raise CheckpointError(f"the configuration has no model.{name}", FIX)
    if kind == MEL and "sample_rate" in model:
        model["filter_bank_rate"] = model.pop("sample_rate")
    # The published classes count the linear layers of a mask in two ways; the checkpoint has as many as it has.
    model.pop("mask_estimator_depth", None)
    model.pop("mlp_hidden_layers", None)
    layers = len({name for name in names if _MASK_LAYER.fullmatch(name)})
    published: dict[str, object] = {"stereo": False, "num_stems": 1}
    return kind, {**published, **model, "mask_layers": layers, **_song(file)}


def _song(file: ConfigFile) -> dict[str, object]:
    """What the other sections say of songs; ``audio.hop_length`` and ``audio.dim_t`` say nothing."""
    instruments = file.training.get("instruments")
    if not instruments:
        raise CheckpointError("the configuration has no training.instruments, the names of the stems", FIX)
    stems = stem_names(instruments)
    target = file.training.get("target_instrument") or None
    if target is not None and target not in stems:
        raise CheckpointError(
            f"training.target_instrument is {shown(target)}, expected null or one of training.instruments: "
            f"{', '.join(map(shown, stems))}",
            FIX,
        )
    chunk = file.inference.get("chunk_size") or file.audio.get("chunk_size")
    if chunk is None:
        raise CheckpointError("the configuration has neither inference.chunk_size nor audio.chunk_size", FIX)
    found = {
        "sources": list(stems.values()),
        "target": None if target is None else stems[target],
        "chunk_size": chunk,
    }
    more = {
        "sample_rate": file.audio.get("sample_rate"),
        "num_overlap": file.inference.get("num_overlap"),
        "normalize": file.inference.get("normalize"),
    }
    return {**found, **{name: value for name, value in more.items() if value is not None}}


def stem_names(instruments: object) -> dict[object, str]:
    """What instruments are called as stems, which are files' names: ``_`` for spaces and the like, ``stem2`` for a
    name of which nothing is left.

    Raises:
        CheckpointError: they are no list of different names.
    """
    texts = instruments if isinstance(instruments, (list, tuple)) else []
    if not texts or not all(isinstance(each, str) for each in texts) or len(set(texts)) < len(texts):
        raise CheckpointError(
            f"training.instruments is {shown(instruments)}, expected a list of different names",
            "Correct it; names that YAML takes for numbers or for yes and no belong in quotes.",
        )
    found: dict[object, str] = {}
    for number, text in enumerate(texts, 1):
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text).lstrip("-.")
        plain = re.search(r"[A-Za-z0-9]", name) is not None
        found[text] = name if plain and name not in found.values() else f"stem{number}"
    return found


def _require_supported(names: Collection[str]) -> None:
    for pattern, what in UNSUPPORTED.items():
        found = next((name for name in names if re.search(pattern, name)), None)
        if found is not None:
            raise CheckpointError(
                f"the checkpoint has {what} ({shown(found)}), a variant that is not supported",
                "Export a checkpoint of a plain BS-RoFormer or Mel-Band RoFormer.",
            )


def require_rotations(config: RoformerConfig, state: Mapping[str, Tensor]) -> None:
    """Checks that rotary frequencies are those of the formula.

    Raises:
        CheckpointError: some are not: they were learnt, or scaled.
    """
    from mrsep_deploy.export.families.roformer.layers import RotaryEmbedding

    expected = RotaryEmbedding(config.dim_head).freqs.detach()
    for name, freqs in state.items():
        if name.endswith("rotary_embed.freqs") and freqs.shape == expected.shape:
            error = float(((freqs - expected) / expected).abs().max())
            if error > MOST_ROTATION_ERROR:
                raise CheckpointError(
                    f"{shown(name)} differs by {error:.1e} from 10000^(-2i/{config.dim_head}), a variant that is not "
                    "supported",
                    "Export a checkpoint with the usual rotary embedding.",
                )
