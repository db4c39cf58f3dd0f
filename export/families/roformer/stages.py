"""A RoFormer as stages: which parts become graphs, and what passes between them.

    spectrogram -> bands -> blocks -> masks -> inverse -> fusion
               \\____________________/

All attention is one graph, because an engine reuses the memory of a graph's layers, of which each has some hundreds of
megabytes, but not that of several graphs. The complex product of mask and spectrogram is the end of the graph of the
masks, not a stage of the host: on a device nothing leaves it for that, and on a CPU the mask is never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from mrsep_deploy.bundle.manifest import Branch, Transform
from mrsep_deploy.export.families.family import StageSource
from mrsep_deploy.export.families.roformer.config import RoformerConfig
from mrsep_deploy.export.families.roformer.model import Roformer
from mrsep_deploy.export.families.staged import (
    SHARED,
    Part,
    analysis,
    features,
    graph,
    synthesis,
    tag,
    total,
)

TOKENS, ATTENDED = "tokens", "attended"

BANDS, BLOCKS, MASKS = "bands", "blocks", "masks"
"""Names of the graphs."""


def make_branches(config: RoformerConfig) -> tuple[Branch, ...]:
    """The one spectrogram: centred frames, a Hann window, the Nyquist bin kept."""
    half, samples = config.n_fft // 2, config.segment_samples
    transform = Transform(
        config.n_fft, config.hop, samples // config.hop + 1, config.bins, half, half,
        scale="orthonormal" if config.normalized else "none", envelope="frames",
    )  # fmt: skip
    return (Branch(str(config.n_fft), (1.0,) * len(config.sources), transform, normalise=False),)


def split(model: Roformer, branches: Sequence[Branch]) -> list[StageSource]:
    """The stages of ``model`` from ``mix`` to ``stems``."""
    (branch,) = branches
    spectrogram, estimate = features(branch), f"estimate_{tag(branch.name)}"
    last = [] if model.final_norm is None else [model.final_norm]
    tokens = Part(model, lambda model, x: (model.band_split(x),), [model.band_split])
    attention = Part(model, lambda model, x: (model.attend(x),), [model.layers, *last])
    masks = Part(model, lambda model, *x: (model.separate(*x),), [model.mask_estimators])
    return [
        *analysis(branches),
        graph(BANDS, branch.name, [spectrogram], [TOKENS], tokens),
        graph(BLOCKS, SHARED, [TOKENS], [ATTENDED], attention),
        graph(MASKS, branch.name, [ATTENDED, spectrogram], [estimate], masks),
        *synthesis(branches, model.config.segment_samples),
        total(branches),
    ]
