"""Shapes of every encoder and decoder layer of a model, worked out once from its configuration.

A published ``HTDemucs`` deep enough to shrink its spectrogram to one bin merges with the waveform
branch there (as its ancestor ``HDemucs`` does): that layer takes the waveform's features as
``inject``, and the layers further in run along time. The multi-resolution families never merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.families.demucs.config import ModelConfig
from mrsep_deploy.export.families.demucs.layer_config import HEADS, MAX_WIDTH, LayerConfig, layer_channels
from mrsep_deploy.export.families.demucs.layers import LayerShape


@dataclass(frozen=True)
class LayerPlan:
    """Layers outermost first. ``merge`` is the index of the merging spectrogram layer, if any."""

    spectrogram: tuple[LayerShape, ...]
    waveform: tuple[LayerShape, ...]
    merge: int | None

    def bins(self, n_fft: int) -> list[int]:
        """Bins after each spectrogram layer of a resolution (1 in layers that run along time)."""
        bins = [n_fft // 2]
        for shape in self.spectrogram:
            bins.append(shape.reduced(bins[-1]) if shape.frequency else 1)
        return bins[1:]


def plan_layers(config: LayerConfig) -> LayerPlan:
    """Derive the layers.

    Raises:
        CheckpointError: no model of this configuration can run: a resolution has too few bins or the
            segment too few samples for the depth, decoders would not return the lengths of their
            encoders, or channels do not divide into groups.
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
        inside = {"lstm": index >= config.recurrent_from, "attention": index >= config.attentive_from}
        frequency = bins > 1 or not config.merges
        merging = config.merges and frequency and bins <= config.kernel_size
        if merging:
            merge = index
            # Both branches take the wider one's channels, and grow from there.
            width = max(inner[index], inner_time[index])
            inner[index:] = layer_channels(width, config.growth, config.depth - index)
            inner_time[index:] = inner[index:]
        kernel, stride = config.kernel_size, config.stride
        if merging:
            kernel = bins
        elif not frequency:
            kernel, stride = 2 * config.time_stride, config.time_stride
        outer = (
            (config.numbers * config.audio_channels, config.numbers * per_source)
            if index == 0
            else (inner[index - 1],) * 2
        )
        spectrogram.append(
            LayerShape(
                inner[index], *outer, kernel=kernel, stride=stride, pad=0 if merging else kernel // 4,
                frequency=frequency, norm=norm, last=index == 0, across=index >= config.banded_layers, **inside,
            )
        )  # fmt: skip
        if config.waveform and frequency:
            outer_t = (config.audio_channels, per_source) if index == 0 else (inner_time[index - 1],) * 2
            waveform.append(
                LayerShape(
                    inner_time[index], *outer_t, kernel=config.kernel_size, stride=config.stride, pad=pad,
                    frequency=False, norm=norm, last=index == 0, empty=merging, **inside,
                )
            )  # fmt: skip
        if frequency:
            bins = 1 if merging else bins // config.stride
    plan = LayerPlan(tuple(spectrogram), tuple(waveform), merge)
    for check in (_check_channels, _check_bins, _check_lengths):
        check(config, plan)
    if isinstance(config, ModelConfig):
        _check_bottleneck(config, plan)
    return plan


def bottleneck_size(config: ModelConfig, plan: LayerPlan) -> tuple[int, int, int]:
    """Bins and frames of the spectrogram that enters the transformer, and samples of the waveform (or 0)."""
    middle = len(config.nfft_list) // 2
    bins = plan.bins(config.nfft_list[middle])[-1]
    frames = -(-config.segment_samples // config.hops[middle])
    samples = reduce(lambda length, shape: shape.reduced(length), plan.waveform, config.segment_samples)
    return bins, frames, samples if plan.waveform else 0


def _check_channels(config: LayerConfig, plan: LayerPlan) -> None:
    dconv = config.dconv_mode and config.dconv_depth
    for shape in (*plan.spectrogram, *plan.waveform):
        hidden = shape.inner / config.dconv_comp if dconv else 1
        if not 1 <= shape.inner <= MAX_WIDTH or not 1 <= hidden <= MAX_WIDTH:
            raise CheckpointError(
                f"channels, growth, depth and dconv_comp give a layer of {shape.inner} channels and "
                f"{hidden:g} in its DConv, expected 1 to {MAX_WIDTH} of each"
            )
        if dconv and shape.attention and not shape.empty and int(hidden) % HEADS:
            raise CheckpointError(
                f"the {int(hidden)} channels in a DConv do not divide into the {HEADS} heads of its attention"
            )
    for shape in (*plan.spectrogram, *plan.waveform):
        if shape.norm and (shape.inner % config.norm_groups or shape.outer_out % config.norm_groups):
            raise CheckpointError(
                f"norm_groups={config.norm_groups} does not divide the {shape.inner} and {shape.outer_out} "
                "channels of a normalised layer"
            )


def _check_bins(config: LayerConfig, plan: LayerPlan) -> None:
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
            reduced = shape.reduced(bins)
            restored = shape.restored(reduced)
            if restored != bins:
                raise CheckpointError(
                    f"nfft={n_fft} gives {bins} bins at layer {index + 1}, which its decoder returns as "
                    f"{restored}; bins must divide by the stride, {shape.stride}, at every layer"
                )
            if index == 0 and config.freq_emb and plan.merge != 0 and reduced > bins // shape.stride:
                raise CheckpointError(
                    f"nfft={n_fft} leaves {reduced} bins after the first layer, "
                    f"its frequency embedding has {bins // shape.stride}"
                )
            bins = reduced


def _check_lengths(config: LayerConfig, plan: LayerPlan) -> None:
    """Every layer along time must give back as many samples, or frames, as it got."""
    frames = -(-config.segment_samples // config.hops[0])
    inner = tuple(s for s in plan.spectrogram if not s.frequency)
    for what, length, shapes in (
        ("samples", config.segment_samples, plan.waveform),
        ("frames", frames, inner),
    ):
        for index, shape in enumerate(shapes):
            reduced = shape.reduced(length)
            if reduced < 1 or shape.restored(reduced) < length:
                raise CheckpointError(
                    f"a kernel of {shape.kernel} with stride {shape.stride} does not return the "
                    f"{length} {what} of layer {index + 1} along time"
                )
            length = reduced
        if what == "samples" and plan.merge is not None and length != frames:
            raise CheckpointError(
                f"the waveform branch reaches the merge with {length} samples, "
                f"the spectrogram with {frames} frames"
            )


def _check_bottleneck(config: ModelConfig, plan: LayerPlan) -> None:
    if not config.t_layers:
        return
    if plan.merge is not None and plan.merge != config.depth - 1:
        raise CheckpointError(
            f"depth={config.depth} leaves time-only layers inside the merged branch, "
            "which a transformer cannot follow"
        )
    for what, shapes in (("spectrogram", plan.spectrogram), ("waveform", plan.waveform)):
        shape = shapes[-1] if shapes else plan.spectrogram[-1]
        if shape.inner != config.bottleneck_channels:
            raise CheckpointError(
                f"channels={config.channels} and channels_time={config.channels_time} give the {what} branch "
                f"{shape.inner} channels, the shared transformer expects {config.bottleneck_channels}"
            )
