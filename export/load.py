"""From a file, or from a family's name and a seed, to a model with weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mrsep_deploy.bundle import shipped
from mrsep_deploy.bundle.manifest import FusionShares, Layout, ModelInfo
from mrsep_deploy.errors import CheckpointError, UsageError
from mrsep_deploy.export.checkpoint.bags import bag_models, bag_segment
from mrsep_deploy.export.checkpoint.config_file import beside, read_config
from mrsep_deploy.export.checkpoint.files import about
from mrsep_deploy.export.checkpoint.read import Checkpoint, read_checkpoint, require_fit
from mrsep_deploy.export.checkpoint.values import shown
from mrsep_deploy.export.families import FAMILIES, family_of, known_classes, variants
from mrsep_deploy.export.families.family import Audio
from mrsep_deploy.export.families.staged import StagedModel, parameter_count

DEFAULT_SOURCES = ("drums", "bass", "other", "vocals")


@dataclass(frozen=True)
class LoadedModel:
    """A model, and where its weights come from.

    ``variant`` names it in ``FAMILIES``, ``config`` is its structure, a dataclass of its family.
    ``origin`` is what the manifest's provenance records; :func:`reload` makes the same model from it.
    ``ignored`` names constructor arguments that only steered training.
    """

    variant: str
    config: Any
    model: nn.Module
    origin: Mapping[str, object]
    trained: bool
    ignored: tuple[str, ...] = ()

    @property
    def audio(self) -> Audio:
        return family_of(self.variant).audio(self.config)

    def staged(self, layout: Layout = "split") -> StagedModel:
        """The model cut into stages."""
        return StagedModel(family_of(self.variant), self.model, layout)

    def info(self) -> ModelInfo:
        """What the model is, in the terms of a manifest."""
        audio = self.audio
        plain = _plain(asdict(self.config))
        if "segment" in plain:
            plain["segment"] = str(plain["segment"])
        return ModelInfo(
            family=self.variant,
            sources=audio.sources,
            sample_rate=audio.sample_rate,
            audio_channels=audio.channels,
            segment=Fraction(audio.segment_samples, audio.sample_rate),
            segment_samples=audio.segment_samples,
            trained=self.trained,
            parameters=parameter_count([self.model]),
            config=plain,
        )

    def shares(self) -> tuple[FusionShares, ...]:
        """The learnt weights of the resolutions."""
        return family_of(self.variant).shares(self.model)


def load_model(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    arguments: Mapping[str, object] | None = None,
    segment: float | None = None,
) -> LoadedModel:
    """Read a checkpoint (``.th``, ``.ckpt``, ``.safetensors``, or a bag of one model, ``.yaml``).

    Args:
        path: the file.
        config: what a state dict without a class is configured by (``export.checkpoint.config_file``); by default the
            ``.yaml`` beside it of the same name, if there is one.
        arguments: constructor arguments in place of those in ``config``.
        segment: seconds of a segment; by default the bag's, if it has some and the family takes any, or the model's.

    Raises:
        CheckpointError: it cannot be read, is not of a supported family, or does not fit its class.
        UsageError: models of its family take segments of their own length only.
    """
    path, asked = Path(path), segment
    if path.suffix.lower() in (".yaml", ".yml"):
        models = bag_models(path)
        if len(models) != 1:
            raise CheckpointError(
                f"{path} is a bag of {len(models)} models, an export makes a bundle of one",
                "Export them one by one, each by the name it has there, and run them together with "
                f"run -n {path}: {', '.join(map(str, models))}.",
            )
        segment = bag_segment(path) if segment is None else segment
        (path,) = models
    place = beside(path) if config is None else Path(config)
    checkpoint = read_checkpoint(path, known_classes(), bare=place is not None)
    if not checkpoint.klass:
        assert place is not None
        variant, found = _from_file(place, checkpoint)
        checkpoint, kwargs = replace(checkpoint, klass=variant), {**found, **(arguments or {})}
    elif config is not None or arguments:
        raise CheckpointError(
            f"{path.name} holds a package of {checkpoint.klass}, which has its own arguments",
            "Leave out --config and --set.",
        )
    else:
        variant, kwargs = known_classes()[checkpoint.klass], dict(checkpoint.kwargs)
    if family_of(variant).any_segment:
        return _loaded(checkpoint, variant, kwargs, {} if segment is None else {"segment": float(segment)})
    if asked is not None:
        raise UsageError(
            f"segments of {asked:g} s were asked for; those of {variant} have the length it was trained with",
            "Leave out --segment; run --segment makes segments shorter.",
        )
    return _loaded(checkpoint, variant, kwargs, {})


def _from_file(config: Path, checkpoint: Checkpoint) -> tuple[str, dict[str, object]]:
    """The variant and the arguments of a bare state dict."""
    file = read_config(config)
    for family in FAMILIES.values():
        with about(config):
            found = family.from_file(file, checkpoint.state.keys())
        if found is not None:
            return found
    raise CheckpointError(
        f"{checkpoint.path.name} holds parameters of no supported model, first {shown(next(iter(checkpoint.state)))}",
        f"Supported are {', '.join(variants())}.",
    )


def _loaded(
    checkpoint: Checkpoint, variant: str, kwargs: Mapping[str, object], changed: Mapping[str, object]
) -> LoadedModel:
    """The model of a variant, with the weights of a checkpoint; ``changed`` takes the place of its arguments."""
    family = family_of(variant)
    config, ignored = family.config(variant, checkpoint.args, {**kwargs, **changed})
    model = meta_model(variant, config)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    state = require_fit(expected, checkpoint, ignore=family.ignored_state)
    with about(checkpoint.path):
        family.check_state(config, state)
    # The tensors read become the parameters: no second copy of the weights.
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)
    origin: dict[str, object] = {
        "path": str(checkpoint.path.resolve()),
        "sha256": checkpoint.sha256,
        "klass": checkpoint.klass,
        "storage": list(checkpoint.storage_dtypes),
        **changed,
    }
    if checkpoint.klass == variant:  # no package: the file does not say what its model is made of
        origin["kwargs"] = _plain(kwargs)
    return LoadedModel(variant, config, model, {"checkpoint": origin}, True, tuple(ignored))


def meta_model(variant: str, config: Any) -> nn.Module:
    """A model whose parameters have shapes and no values: those of a checkpoint take their place, or none do."""
    with torch.device("meta"):
        return family_of(variant).model(config)


def untrained_model(family: str, seed: int, **kwargs: object) -> LoadedModel:
    """A model of a family with seeded random weights: it runs like a trained one, but separates nothing.

    Weights come from NumPy's ``RandomState``, whose stream is frozen, so a seed means the same model
    everywhere and for good.
    """
    arguments = {"sources": list(DEFAULT_SOURCES), **kwargs}
    config, ignored = family_of(family).config(family, (), arguments)
    model = meta_model(family, config)
    model.to_empty(device="cpu")
    _draw(model, np.random.RandomState(seed))
    model.requires_grad_(False)
    origin = {"untrained": {"family": family, "seed": seed, "kwargs": _plain(arguments)}}
    return LoadedModel(family, config, model, origin, False, tuple(ignored))


def _plain(arguments: Mapping[str, object]) -> dict[str, object]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in arguments.items()}


def _draw(model: nn.Module, random: np.random.RandomState) -> None:
    """Weights of variance ``1 / fan_in``, unit norms, modules with ``untrained`` at that: every path carries signal."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                value = np.full(parameter.shape, 1.0 if name == "weight" else 0.0)
            elif hasattr(module, "untrained"):
                value = np.full(parameter.shape, module.untrained)
            elif isinstance(module, nn.Embedding) or parameter.dim() < 2 or name.endswith("fusion_weights"):
                value = random.standard_normal(parameter.shape) * 0.1
            else:
                value = random.standard_normal(parameter.shape) / np.sqrt(_fan_in(module, parameter))
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(np.asarray(value, np.float32)))


def _fan_in(module: nn.Module, parameter: nn.Parameter) -> float:
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        # Each output sample sees kernel / stride taps of every input channel.
        taps = parameter[0, 0].numel() / int(np.prod(module.stride))
        return len(parameter) * max(taps, 1.0)
    return float(parameter[0].numel())


def reload(origin: Mapping[str, object], checkpoint: Path | None = None) -> LoadedModel:
    """Make the model of a bundle again, from its provenance.

    Args:
        origin: as :attr:`LoadedModel.origin`, out of a manifest.
        checkpoint: where the checkpoint lies now; by default where it lay at the export, or in this package
            if it is the one that the shipped bundle was made from.

    Raises:
        CheckpointError: the checkpoint is gone, or is not the one the bundle was exported from.
    """
    untrained = origin.get("untrained")
    if isinstance(untrained, Mapping):
        try:
            return untrained_model(str(untrained["family"]), int(untrained["seed"]), **untrained["kwargs"])
        except (KeyError, TypeError, ValueError) as error:  # a manifest may come from anyone
            raise CheckpointError("the bundle does not say how its untrained model was made") from error
    recorded = origin.get("checkpoint")
    if not isinstance(recorded, Mapping) or not isinstance(recorded.get("sha256"), str):
        raise CheckpointError("the bundle does not say which checkpoint it was exported from")
    path = checkpoint or Path(str(recorded.get("path", "an unknown place")))
    if path == Path(shipped.CHECKPOINT.name):
        path = shipped.CHECKPOINT
    if not path.exists():
        raise CheckpointError(
            f"the checkpoint this bundle was exported from is not at {path}",
            "Give its place with --checkpoint FILE.",
        )
    loaded = _recorded_model(path, recorded)
    found = loaded.origin["checkpoint"]
    if isinstance(found, Mapping) and found["sha256"] != recorded["sha256"]:
        raise CheckpointError(
            f"{path} has sha256 {str(found['sha256'])[:16]}…, "
            f"the bundle was exported from {str(recorded['sha256'])[:16]}…",
            "Give the right file with --checkpoint FILE, or export again.",
        )
    return loaded


def _recorded_model(path: Path, recorded: Mapping[str, object]) -> LoadedModel:
    """The model of a checkpoint, a bare state dict by the arguments that were recorded at the export."""
    variant, kwargs = recorded.get("klass"), recorded.get("kwargs")
    if not isinstance(kwargs, Mapping) or variant not in variants():
        segment = recorded.get("segment")
        return load_model(path, segment=segment if isinstance(segment, float) else None)
    checkpoint = read_checkpoint(path, known_classes(), bare=True)
    return _loaded(replace(checkpoint, klass=str(variant)), str(variant), kwargs, {})
