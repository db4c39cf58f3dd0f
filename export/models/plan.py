"""Shapes of every encoder and decoder layer of a model, worked out once from its configuration.

A published ``HTDemucs`` deep enough to shrink its spectrogram to one bin merges with the waveform
branch there (as its ancestor ``HDemucs`` does): that layer takes the waveform's features as
``inject``, and the layers further in run along time. The multi-resolution families never merge.
"""

from __future__ import annotations

from dataclasses import dataclass

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.models.config import ModelConfig, layer_channels
from mrsep_deploy.export.models.layers import LayerShape


@dataclass(frozen=True)
class LayerPlan:
    """Layers outermost first. ``merge`` is the index of the merging spectrogram layer, if any."""

    spectrogram: tuple[LayerShape, ...]
    waveform: tuple[LayerShape, ...]
    waveform_lengths: tuple[int, ...]
    merge: int | None


def plan_layers(config: ModelConfig) -> LayerPlan:
    """Derive the layers.

    Raises:
        CheckpointError: a resolution has too few bins, or the segment too few samples, for the depth.
    """
    inner = layer_channels(config.channels, config.growth, config.depth)
    inner_time = layer_channels(config.channels_time or config.channels, config.growth, config.depth)
    per_source = config.audio_channels * len(config.sources)
    bins = config.nfft_list[0] // 2
    spectrogram: list[LayerShape] = []
    waveform: list[LayerShape] = []
    merge: int | None = None
    pad = config.kernel_size // 4
    for index in range(config.depth):
        norm = index >= config.norm_starts
        frequency = bins > 1 or config.family != "htdemucs"
        merging = config.family == "htdemucs" and frequency and bins <= config.kernel_size
        if merging:
            merge = index
            _widen(inner, inner_time, index, config)
        kernel, stride = config.kernel_size, config.stride
        if merging:
            kernel = bins
        elif not frequency:
            kernel, stride = 2 * config.time_stride, config.time_stride
        outer = (2 * config.audio_channels, 2 * per_source) if index == 0 else (inner[index - 1],) * 2
        spectrogram.append(
            LayerShape(
                inner[index], *outer, kernel=kernel, stride=stride, pad=0 if merging else kernel // 4,
                frequency=frequency, norm=norm, last=index == 0,
            )
        )  # fmt: skip
        if config.waveform and frequency:
            outer_t = (config.audio_channels, per_source) if index == 0 else (inner_time[index - 1],) * 2
            waveform.append(
                LayerShape(
                    inner_time[index], *outer_t, kernel=config.kernel_size, stride=config.stride, pad=pad,
                    frequency=False, norm=norm, last=index == 0, empty=merging,
                )
            )  # fmt: skip
        if frequency:
            bins = 1 if merging else bins // config.stride
    plan = LayerPlan(tuple(spectrogram), tuple(waveform), _lengths(config, waveform), merge)
    _check_bins(config, plan)
    return plan


def _widen(inner: list[int], inner_time: list[int], index: int, config: ModelConfig) -> None:
    """At the merge both branches take the wider one's channels, and grow from there."""
    width = max(inner[index], inner_time[index])
    for channels in (inner, inner_time):
        channels[index:] = layer_channels(width, config.growth, config.depth - index)


def _lengths(config: ModelConfig, waveform: list[LayerShape]) -> tuple[int, ...]:
    """Samples entering each waveform layer."""
    lengths = [config.segment_samples]
    for shape in waveform:
        lengths.append(-(-lengths[-1] // shape.stride))
    return tuple(lengths[:-1])


def _check_bins(config: ModelConfig, plan: LayerPlan) -> None:
    for n_fft in config.nfft_list:
        bins = n_fft // 2
        for index, shape in enumerate(plan.spectrogram):
            if not shape.frequency:
                break
            if bins + 2 * shape.pad < shape.kernel:
                raise CheckpointError(
                    f"nfft={n_fft} has {bins} bins left at layer {index + 1} of {config.depth}, "
                    f"its kernel of {shape.kernel} needs {shape.kernel - 2 * shape.pad}"
                )
            reduced = (bins + 2 * shape.pad - shape.kernel) // shape.stride + 1
            restored = (reduced - 1) * shape.stride + shape.kernel - 2 * shape.pad
            if restored != bins:
                raise CheckpointError(
                    f"nfft={n_fft} gives {bins} bins at layer {index + 1}, which its decoder returns as {restored}; "
                    f"bins must divide by the stride, {shape.stride}, at every layer"
                )
            bins = reduced
    if plan.merge is not None and config.t_layers and plan.merge != config.depth - 1:
        raise CheckpointError(
            f"depth={config.depth} leaves time-only layers inside the merged branch, which a transformer cannot follow"
        )
