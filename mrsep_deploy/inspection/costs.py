"""Costs of a checkpoint or of a configuration, counted on torch's operators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mrsep_deploy.bundle.manifest import Branch
from mrsep_deploy.export.api import default_name
from mrsep_deploy.export.complexity import count_stages
from mrsep_deploy.export.families.demucs.config import ModelConfig, parse_config
from mrsep_deploy.export.families.demucs.stages import TIME, branch_names
from mrsep_deploy.export.load import DEFAULT_SOURCES, load_model
from mrsep_deploy.inspection.complexity import Kind, ModelCost, StageCost


def checkpoint_cost(path: Path) -> ModelCost:
    """Count the model in a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or is of no supported family.
    """
    loaded = load_model(path)
    return config_cost(loaded.config, default_name(loaded), "checkpoint")


def family_cost(family: str, arguments: Mapping[str, object]) -> ModelCost:
    """Count the model of a family with these constructor arguments, Demucs' four sources by default.

    Raises:
        CheckpointError: they make no model.
    """
    config, _ignored = parse_config(family, (), {"sources": list(DEFAULT_SOURCES), **arguments})
    return config_cost(config, family, "configuration")


def config_cost(config: ModelConfig, name: str, kind: Kind) -> ModelCost:
    """Count every stage of a model of this structure; nothing is allocated or computed."""
    counted = count_stages(config, _branches(config), "split")
    stages = tuple(
        StageCost(s.name, s.branch, s.parameters, s.macs, counted.activations[s.name])
        for s in counted.stages
        if s.kind == "graph"
    )
    seconds = config.segment_samples / config.samplerate
    return ModelCost(kind, name, config.family, seconds, counted.parameters, stages)


def _branches(config: ModelConfig) -> tuple[Branch, ...]:
    """Sizes of the branches; there are no weights that gains could come from."""
    length = config.segment_samples
    branches = [
        Branch(name, n_fft, hop, n_fft // 2, -(-length // hop), ())
        for name, n_fft, hop in zip(
            branch_names(config.nfft_list), config.nfft_list, config.hops, strict=True
        )
    ]
    return (*branches, Branch(TIME, 0, 0, 0, length, ())) if config.waveform else tuple(branches)
