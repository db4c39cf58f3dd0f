"""Costs of a checkpoint or of a configuration, counted on torch's operators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mrsep_deploy.export.api import default_name
from mrsep_deploy.export.complexity import count_stages
from mrsep_deploy.export.families import family_of
from mrsep_deploy.export.families.staged import StagedModel
from mrsep_deploy.export.load import DEFAULT_SOURCES, load_model, meta_model
from mrsep_deploy.inspection.complexity import Kind, ModelCost, StageCost


def checkpoint_cost(path: Path) -> ModelCost:
    """Counts the model in a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or is of no supported family.
    """
    loaded = load_model(path)
    return _cost(loaded.variant, loaded.staged(), loaded.config, default_name(loaded), "checkpoint")


def family_cost(variant: str, arguments: Mapping[str, object]) -> ModelCost:
    """Counts the model that these constructor arguments make, of Demucs' four sources by default.

    Raises:
        CheckpointError: they make no model.
    """
    family = family_of(variant)
    config, _ignored = family.config(variant, (), {"sources": list(DEFAULT_SOURCES), **arguments})
    staged = StagedModel(family, meta_model(variant, config))
    return _cost(variant, staged, config, variant, "configuration")


def _cost(variant: str, staged: StagedModel, config: object, name: str, kind: Kind) -> ModelCost:
    """Counts every stage of a model; nothing is allocated or computed."""
    audio = family_of(variant).audio(config)
    counted = count_stages(staged, audio)
    stages = tuple(
        StageCost(s.name, s.branch, s.parameters, s.macs, counted.activations[s.name])
        for s in counted.stages
        if s.kind == "graph"
    )
    seconds = audio.segment_samples / audio.sample_rate
    return ModelCost(kind, name, variant, seconds, counted.parameters, stages)
