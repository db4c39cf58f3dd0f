"""``HDemucs`` and ``Demucs`` as stages: which parts become graphs, and what passes between them.

The layers with LSTMs are a stage of their own, ``bottleneck``: engines run an LSTM as a loop over frames, which they
neither fuse with what is around it nor run beside anything else of the same graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mrsep_deploy.bundle.manifest import Branch, Transform
from mrsep_deploy.export.families.family import StageSource
from mrsep_deploy.export.families.hdemucs.config import HybridConfig, WaveformConfig
from mrsep_deploy.export.families.hdemucs.hybrid import HDemucs, Magnitudes, WithPhase
from mrsep_deploy.export.families.hdemucs.waveform import Demucs
from mrsep_deploy.export.families.staged import (
    SHARED,
    Owned,
    Part,
    analysis,
    features,
    graph,
    synthesis,
    tag,
    total,
)

TIME = "time"


def hybrid_branches(config: HybridConfig) -> tuple[Branch, ...]:
    """The spectrogram, which is normalised in a graph where it is made of magnitudes, and the waveform."""
    ones = (1.0,) * len(config.sources)
    (n_fft,) = config.nfft_list
    return (
        Branch(str(n_fft), ones, hybrid_transform(config), normalise=config.cac),
        Branch(TIME, ones),
    )


def hybrid_transform(config: HybridConfig) -> Transform:
    """The published transform: ``ceil(length / hop)`` frames without the Nyquist bin.

    Frame 0 begins 3/8 of a window before the segment. With ``hybrid_old`` there are zeros around the segment instead
    of its reflection, and in the synthesis frame 0 begins with the segment.
    """
    (n_fft,), (hop,), length = config.nfft_list, config.hops, config.segment_samples
    frames, offset = -(-length // hop), 3 * (hop // 2)
    after = offset + frames * hop - length
    if not config.hybrid_old:
        return Transform(n_fft, hop, frames, n_fft // 2, offset, after)
    return Transform(
        n_fft, hop, frames, n_fft // 2, offset, after, padding="zeros", envelope="extended", delay=offset
    )


def split_hybrid(model: HDemucs, branches: Sequence[Branch]) -> list[StageSource]:
    """The stages of ``model`` from ``mix`` to ``stems``."""
    spectrogram, waveform = branches
    name, channels = tag(spectrogram.name), model.config.audio_channels
    read, made = features(spectrogram), f"estimate_{name}"
    before: list[StageSource] = []
    after: list[StageSource] = []
    if not model.config.cac:
        read, made, kept = f"magnitudes_{name}", f"levels_{name}", f"statistics_{name}"
        first, inputs = f"magnitude.{spectrogram.name}", [made, kept, features(spectrogram)]
        before = [graph(first, spectrogram.name, inputs[2:], [read, kept], Magnitudes(channels))]
        last, outputs = f"phase.{spectrogram.name}", [f"estimate_{name}"]
        after = [graph(last, spectrogram.name, inputs, outputs, WithPhase(channels))]
    merge, inner = model.merge, model.config.depth - 1 - model.merge
    skips = [f"skip{index}_{name}" for index in range(merge)]
    skips_t = [f"skip{index}_{TIME}" for index in range(merge + 1)]
    hidden, beyond = f"hidden_{name}", _beyond(model.decoder[inner])
    embedding: Owned = [] if model.freq_emb is None else [model.freq_emb]
    outer: Owned = [*model.encoder[:merge], *(embedding if merge else [])]
    shared: Owned = [*model.encoder[merge:], *model.decoder[:inner], *(embedding if not merge else [])]
    shared += [part for part in model.decoder[inner].children() if part not in beyond]

    def stage(side: str, branch: Branch, inputs: list[str], outputs: list[str], owned: Owned) -> StageSource:
        what = "waveform" if branch.is_waveform else "spectrogram"
        part = Part(model, lambda model, *x: getattr(model, f"{side[:6]}_{what}")(*x), owned)
        return graph(f"{side}.{branch.name}", branch.name, inputs, outputs, part)

    bottleneck = Part(model, lambda model, *x: model.bottleneck(*x), shared)
    return [
        *analysis(branches),
        *before,
        stage("encoder", waveform, [features(waveform)], skips_t, [model.tencoder]),
        *([stage("encoder", spectrogram, [read], skips, outer)] if merge else []),
        graph("bottleneck", SHARED, [skips[-1] if merge else read, skips_t[-1]], [hidden], bottleneck),
        stage("decoder", spectrogram, [hidden, *skips], [made], [*beyond, *model.decoder[inner + 1 :]]),
        stage("decoder", waveform, [hidden, *skips_t[:-1]], [f"estimate_{TIME}"], [model.tdecoder]),
        *after,
        *synthesis(branches, model.config.segment_samples),
        total(branches),
    ]


def _beyond(merging: nn.Module) -> Owned:
    """What the merging decoder layer does in the spectrogram's decoder: the bottleneck ends before it."""
    return [part for name, part in merging.named_children() if name in ("conv_tr", "norm2")]


def split_waveform(model: Demucs, branches: Sequence[Branch]) -> list[StageSource]:
    """The stages of ``model`` from ``mix`` to ``stems``; without an LSTM or an attention there is no bottleneck."""
    inner = model.inner
    level = ["statistics_time"] if model.config.normalize else []
    skips = [f"skip{index}_{TIME}" for index in range(inner)]
    deepest = skips[-1] if skips else "resampled_time"
    outer, inside = model.encoder[:inner], model.encoder[inner:]
    decoders = len(model.decoder) - inner
    owned: Owned = [*inside, *model.decoder[:decoders], *([model.lstm] if model.lstm is not None else [])]
    bottleneck = Part(model, lambda model, x: model.bottleneck(x), owned)
    hidden = f"hidden_{TIME}" if owned else deepest
    encode = Part(model, lambda model, x: model.encode(x), [outer])
    decode = Part(model, lambda model, *x: model.decode(*x), [model.decoder[decoders:]])
    reads = [*level, *([hidden] if owned else []), *skips]
    return [
        *analysis(branches),
        graph(f"encoder.{TIME}", TIME, [features(branches[0])], [*level, *(skips or [deepest])], encode),
        *([graph("bottleneck", SHARED, [deepest], [hidden], bottleneck)] if owned else []),
        graph(f"decoder.{TIME}", TIME, reads, [f"estimate_{TIME}"], decode),
        *synthesis(branches, model.config.segment_samples),
        total(branches),
    ]


def waveform_branches(config: WaveformConfig) -> tuple[Branch, ...]:
    """The waveform; its level is taken out in a graph, because it is that of the mono mix."""
    return (Branch(TIME, (1.0,) * len(config.sources), normalise=False),)
