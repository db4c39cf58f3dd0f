"""What a model costs: parameters, multiply-accumulates and activations, by stage and in all.

    parameters    learnt numbers
    MACs          multiply-accumulates of convolutions, linear layers and both products of attention in the model
                  as published; ``inspect`` gives the same. A FLOP count is twice that
    in graphs     those of a bundle's ONNX graphs, which compute the same rewritten: norms folded into
                  convolutions multiply a little more, and a convolution that fuses branches becomes products
                  with matrices that are half zeros
    activations   elements that those same operators put out (Radosavovic et al., "Designing Network Design
                  Spaces", 2020); the scores of softmax attention are among them, which a fused kernel
                  never stores. Of a bundle they are those of its graphs

All of it is for one segment, a batch of one. Spectrograms and their inverses are no part of the network and
count nothing. Counting needs the extra ``export``; what is here is the result, which needs nothing.

    >>> complexity("htdemucs").macs                                       # doctest: +SKIP
    167025803264
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mrsep_deploy.inspection.costs import Kind, ModelCost, StageCost

if TYPE_CHECKING:
    from mrsep_deploy.export.families.staged import StagedModel


def complexity(path_or_name: str | os.PathLike[str] | None = None) -> ModelCost:
    """Counts a bundle (its path, its registered name, or None for the default) or a checkpoint.

    Raises:
        UsageError: nothing of that name is registered.
        BundleError, CheckpointError: it is damaged, or of a kind that is not supported.
        ExportError: the extra is not installed.
    """
    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.bundle.registry import resolve
    from mrsep_deploy.export.api import default_name, require_extra
    from mrsep_deploy.inspection.inspect import is_checkpoint

    if path_or_name is not None and is_checkpoint(path_or_name):
        require_extra("counting a checkpoint")
        from mrsep_deploy.export.load import load_model

        loaded = load_model(Path(path_or_name))
        return _cost(loaded.variant, loaded.staged(), loaded.config, default_name(loaded), "checkpoint")
    bundle = Bundle.open(resolve(path_or_name))
    require_extra("counting a bundle's graphs")
    from mrsep_deploy.inspection.graph_costs import bundle_cost

    return bundle_cost(bundle)


def configuration_cost(variant: str, arguments: Mapping[str, object]) -> ModelCost:
    """Counts the model that these constructor arguments make, of Demucs' four sources by default; no weights needed.

    Raises:
        CheckpointError: the arguments make no model; the message names what is wrong.
        ExportError: the extra is not installed.
    """
    from mrsep_deploy.export.api import require_extra

    require_extra("counting a configuration")
    from mrsep_deploy.export.families import family_of
    from mrsep_deploy.export.families.staged import StagedModel
    from mrsep_deploy.export.load import DEFAULT_SOURCES, meta_model

    found = family_of(variant)
    config, _ignored = found.config(variant, (), {"sources": list(DEFAULT_SOURCES), **arguments})
    return _cost(variant, StagedModel(found, meta_model(variant, config)), config, variant, "configuration")


def _cost(variant: str, staged: StagedModel, config: object, name: str, kind: Kind) -> ModelCost:
    """Counts every stage of a model; nothing is allocated or computed."""
    from mrsep_deploy.export.complexity import count_stages
    from mrsep_deploy.export.families import family_of

    audio = family_of(variant).audio(config)
    counted = count_stages(staged, audio)
    stages = tuple(
        StageCost(s.name, s.branch, s.parameters, s.macs, counted.activations[s.name])
        for s in counted.stages
        if s.kind == "graph"
    )
    seconds = audio.segment_samples / audio.sample_rate
    return ModelCost(kind, name, variant, seconds, counted.parameters, stages)
