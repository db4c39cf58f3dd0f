"""Spectrograms, inverses, normalisation and sums as ONNX graphs, for engines that run them on a device.

The same functions as :mod:`mrsep_deploy.transforms.spectrogram`, so that a segment goes from mix to stems without
leaving a GPU. They hold matrix products, reductions, element-wise arithmetic and moves of whole blocks, which
every engine runs: no ``STFT``, ``DFT``, ``Col2Im``, ``Gather`` or ``Scatter``. All are float32;
:mod:`~mrsep_deploy.export.graphs.dft` derives the products and says how true they are.

Shapes are written as in the manifest, with ``R`` for rows of real transforms (items times audio channels, and
sources), and samples and bins by their digits ``n1, n2, n3`` and ``k1, k2, k3`` as in ``factored_dft``. Frames lie
along the last axis from beginning to end and digits are ordered so that every product leaves its
result where the next one wants it, and the last one the bins as the model reads them. The only
transposes are those of the signal itself, a quarter (or half) of a spectrogram's size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from mrsep_deploy.bundle.manifest import Branch, Stage, TensorSpec
from mrsep_deploy.export.graphs import dft
from mrsep_deploy.export.graphs.build import GraphBuilder
from mrsep_deploy.export.graphs.dft import factorise
from mrsep_deploy.transforms.spectrogram import NORMALISE_EPS, Float64, frame_offset

SHORT_SUM = 1024
"""Terms that one float32 accumulator adds with an error of 1e-6 (about ``6e-8 sqrt(n) / 2``)."""


def transform_graph(stage: Stage, branches: Sequence[Branch], tensors: Mapping[str, TensorSpec]) -> bytes:
    """The ONNX model of a stage whose kind is not ``graph``.

    Args:
        stage: which one; the model's inputs and outputs have its names and order.
        branches: the manifest's branches.
        tensors: the manifest's tensors by name; shapes are static and include the batch.

    Raises:
        ValueError: the stage is of kind ``graph``.
    """
    inputs, outputs = ([tensors[name] for name in names] for names in (stage.inputs, stage.outputs))
    graph = GraphBuilder(stage.name)
    if stage.kind == "sum":
        _sum(graph, inputs, outputs[0])
    elif stage.kind == "spectrogram":
        _spectrogram(graph, _branch(stage, branches), inputs[0], outputs)
    elif stage.kind == "normalize":
        _normalise(graph, inputs[0].name, inputs[0].shape, outputs)
    elif stage.kind == "inverse":
        _inverse(graph, _branch(stage, branches), inputs, outputs[0])
    elif stage.kind == "denormalize":
        signal = outputs[0]
        gains = np.array(_branch(stage, branches).gains).reshape(1, -1, 1, 1)
        estimate = graph.reshape(inputs[0].name, *signal.shape)
        _denormalise(graph, estimate, inputs[1], gains, output=signal.name)
    else:
        raise ValueError(f"stage {stage.name} of kind {stage.kind} is a graph of its own")
    return graph.serialise(inputs, outputs)


def transform_macs(stage: Stage, branches: Sequence[Branch], tensors: Mapping[str, TensorSpec]) -> int:
    """Multiply-accumulates in the matrix products of such a graph, for one segment (batch of one).

    Not part of a model's own (``Stage.macs`` stays 0 for these kinds): hosts compute the same with a fast
    Fourier transform.
    """
    if stage.kind not in ("spectrogram", "inverse"):
        return 0
    branch = _branch(stage, branches)
    signal = tensors[stage.inputs[0] if stage.kind == "spectrogram" else stage.outputs[0]]
    transforms = math.prod(signal.shape[1:-1]) * branch.frames
    return transforms * factorise(branch.n_fft, branch.hop).macs


def _branch(stage: Stage, branches: Sequence[Branch]) -> Branch:
    return next(branch for branch in branches if branch.name == stage.branch)


def _sum(graph: GraphBuilder, signals: Sequence[TensorSpec], stems: TensorSpec) -> None:
    """``[B, S, C, L]`` each; one addition a signal."""
    total = signals[0].name
    for signal in signals[1:-1]:
        total = graph.op("Add", total, signal.name)
    if len(signals) > 1:
        graph.op("Add", total, signals[-1].name, output=stems.name)
    else:
        graph.op("Identity", total, output=stems.name)


# --- analysis


def _spectrogram(graph: GraphBuilder, branch: Branch, mix: TensorSpec, outputs: Sequence[TensorSpec]) -> None:
    """mix ``[B, C, L]`` -> normalised spectrogram ``[B, 2C, F, T]``, statistics ``[B, 2]``."""
    x = _forward(graph, branch, _frames(graph, branch, mix), math.prod(mix.shape[:-1]))
    shape = (mix.shape[0], 2 * mix.shape[1], branch.bins, branch.frames)
    _normalise(graph, graph.reshape(x, *shape), shape, outputs)


def _forward(graph: GraphBuilder, branch: Branch, x: str, rows: int) -> str:
    """Frames ``[R, (n3, n2), n1, T]`` -> spectrogram ``[R, (re/im, k3), (k2, k1, T)]``, ``k1`` fastest: by bins."""
    factors = factorise(branch.n_fft, branch.hop)
    graph.scope = "dft"
    first = graph.constant(dft.forward_first(factors)[None], "first")
    x = graph.op("MatMul", first, x)  # [R, (n3, n2), (re/im, k1), T] = [R, n3, (n2, re/im), (k1, T)]
    if factors.middle > 1:
        x = graph.reshape(x, rows, factors.last, 2 * factors.middle, factors.first * branch.frames)
        middle = graph.constant(dft.forward_middle(factors)[None], "middle")
        x = graph.op("MatMul", middle, x)  # [R, n3, (re/im, k2), (k1, T)] = [R, (n3, re/im), (k2, k1, T)]
    x = graph.reshape(x, rows, 2 * factors.last, factors.middle * factors.first * branch.frames)
    last = graph.constant(dft.forward_last(factors)[None], "last")
    return graph.op("MatMul", last, x)


def _frames(graph: GraphBuilder, branch: Branch, mix: TensorSpec) -> str:
    """``[B, C, L]`` -> ``[R, (n3, n2), n1, T]``: the samples ``n`` of every frame.

    A hop is ``N1 / overlap`` whole rows ``n1``, so frame ``t`` is the hops ``t .. t + overlap - 1`` on top of
    each other: the transposed signal several times, shifted by one hop each time.
    """
    graph.scope = "frames"
    factors = factorise(branch.n_fft, branch.hop)
    overlap = branch.n_fft // branch.hop
    hops, height = branch.frames + overlap - 1, factors.first // overlap
    rows = math.prod(mix.shape[:-1])
    x = _padded(graph, branch, mix)
    if hops * branch.hop < branch.frames * branch.hop + 2 * frame_offset(branch.n_fft, branch.hop):
        x = graph.slice(x, 2, 0, hops * branch.hop)  # a hop of half a frame: one hop is in no frame
    x = graph.reshape(x, rows, hops, height, factors.middle, factors.last)
    x = graph.op("Transpose", x, perm=[0, 4, 3, 2, 1])
    x = graph.reshape(x, rows, factors.rest, height, hops)
    shifted = [graph.slice(x, 3, hop, hop + branch.frames) for hop in range(overlap)]
    return graph.op("Concat", *shifted, axis=2)


def _padded(graph: GraphBuilder, branch: Branch, mix: TensorSpec) -> str:
    """``[B, C, L]`` -> ``[B, C, T hop + 2 offset]``, reflected as ``spectrogram.reflect`` does."""
    samples = mix.shape[-1]
    left = frame_offset(branch.n_fft, branch.hop)
    right = left + branch.frames * branch.hop - samples
    x = mix.name
    short = max(left, right) - samples + 1
    if short > 0:
        zeros_right = min(right, short)
        zeros_left = short - zeros_right
        x = graph.pad_last(x, 3, zeros_left, zeros_right)
        left, right, samples = left - zeros_left, right - zeros_right, samples + short
    before = [graph.slice(x, 2, left, 0, -1)] if left else []
    # a stop of -1 would be the last sample; "before the first" is counted from the end
    stop = samples - 2 - right
    after = [graph.slice(x, 2, samples - 2, stop if stop >= 0 else -samples - 1, -1)] if right else []
    return graph.op("Concat", *before, x, *after, axis=2)


# --- normalisation


def _normalise(graph: GraphBuilder, x: str, shape: Sequence[int], outputs: Sequence[TensorSpec]) -> None:
    """``[B, ...]`` -> ``(x - mean) / (1e-5 + std)`` per item, and (mean, unbiased std) ``[B, 2]``."""
    graph.scope = "normalise"
    normalised, statistics = outputs
    count = math.prod(shape[1:])
    mean = graph.op("Mul", _total(graph, x, shape), graph.number(1 / count, "1/count"))
    centred = graph.op("Sub", x, _one_per_item(graph, mean, shape))
    power = _total(graph, graph.op("Mul", centred, centred), shape)
    variance = graph.op("Mul", power, graph.number(1 / max(count - 1, 1), "1/(count-1)"))
    std = graph.op("Sqrt", variance)
    graph.op("Concat", mean, std, axis=1, output=statistics.name)
    scale = graph.op("Reciprocal", graph.op("Add", std, graph.number(NORMALISE_EPS, "epsilon")))
    graph.op("Mul", centred, _one_per_item(graph, scale, shape), output=normalised.name)


def _total(graph: GraphBuilder, x: str, shape: Sequence[int]) -> str:
    """Sum of every item of ``[B, ...]`` as ``[B, 1]``, in steps of about a thousand terms at most.

    Engines accumulate a reduction in one float32; over millions of terms that alone costs 40 dB. OpenVINO
    joins reductions that follow each other, so there is a change of shape between them.
    """
    batch, count = shape[0], math.prod(shape[1:])
    if len(shape) == 4:  # a spectrogram: its frames first, which lie together as they are
        x = graph.op("ReduceSum", x, graph.integers(3), keepdims=0)
        count //= shape[3]
    while count > 1:
        block = _block(count)
        blocks = -(-count // block)
        x = graph.reshape(x, batch, count)
        if blocks * block > count:
            x = graph.pad_last(x, 2, 0, blocks * block - count)
        x = graph.op("ReduceSum", graph.reshape(x, batch, blocks, block), graph.integers(2), keepdims=0)
        count = blocks
    return graph.reshape(x, batch, 1)


def _block(count: int) -> int:
    """How many terms to add at a time: all of a few, else about the square root, a divisor if there is one."""
    if count <= SHORT_SUM:
        return count
    root = math.isqrt(count - 1) + 1
    return next((block for block in range(root, 2 * root) if count % block == 0), root)


def _one_per_item(graph: GraphBuilder, x: str, shape: Sequence[int]) -> str:
    """``[B, 1]`` shaped to be broadcast over ``[B, ...]``."""
    return graph.reshape(x, shape[0], *[1] * (len(shape) - 1))


def _denormalise(
    graph: GraphBuilder, x: str, statistics: TensorSpec, gains: Float64, output: str | None = None
) -> str:
    """``(x std + mean) gain``, for constant ``gains`` that broadcast over ``x`` as ``x[0]`` does.

    One product and one sum over ``x``: gains are multiplied into the statistics, which are few.
    """
    graph.scope = "denormalise"
    gain = graph.constant(gains.astype(np.float32), "gains")
    mean, std = (
        graph.reshape(graph.slice(statistics.name, 1, i, i + 1), -1, *[1] * (gains.ndim - 1))
        for i in range(2)
    )
    x = graph.op("Mul", x, graph.op("Mul", std, gain))
    return graph.op("Add", x, graph.op("Mul", mean, gain), output=output)


# --- synthesis


def _inverse(graph: GraphBuilder, branch: Branch, inputs: Sequence[TensorSpec], signal: TensorSpec) -> None:
    """estimate ``[B, 2 S C, F, T]``, statistics ``[B, 2]`` -> signal ``[B, S, C, L]``."""
    batch, sources, channels, _ = signal.shape
    estimate = graph.reshape(inputs[0].name, batch, sources, 2 * channels, branch.bins, branch.frames)
    halved = np.ones(branch.bins)
    halved[0] = 0.5  # the one bin that is not there twice, see factored_dft
    gains = np.outer(branch.gains, halved).reshape(1, sources, 1, branch.bins, 1)
    x = _denormalise(graph, estimate, inputs[1], gains)
    x = _backward(graph, branch, x, batch * sources * channels)
    _overlap_add(graph, branch, x, signal)


def _backward(graph: GraphBuilder, branch: Branch, x: str, rows: int) -> str:
    """Spectrogram ``[R, 2, F, T]``, bin 0 halved -> windowed frames ``[R, (n3, n2), n1, T]``: ``_forward`` reversed."""
    factors = factorise(branch.n_fft, branch.hop)
    graph.scope = "dft"
    x = graph.reshape(x, rows, factors.last, factors.middle * factors.first * branch.frames)
    last = graph.constant(dft.inverse_last(factors)[None], "last")
    x = graph.op("MatMul", last, x)  # [R, (n3, re/im), (k2, k1, T)] = [R, n3, (re/im, k2), (k1, T)]
    if factors.middle > 1:
        x = graph.reshape(x, rows, factors.last, 2 * factors.middle, factors.first * branch.frames)
        middle = graph.constant(dft.inverse_middle(factors)[None], "middle")
        x = graph.op("MatMul", middle, x)  # [R, n3, (n2, re/im), (k1, T)] = [R, (n3, n2), (re/im, k1), T]
    x = graph.reshape(x, rows, factors.rest, 2 * factors.first, branch.frames)
    first = graph.constant(dft.inverse_first(factors, branch.hop)[None], "first")
    return graph.op("MatMul", first, x)


def _overlap_add(graph: GraphBuilder, branch: Branch, x: str, signal: TensorSpec) -> None:
    """Frames ``[R, (n3, n2), n1, T]`` -> ``[B, S, C, L]``: ``_frames`` reversed, then the padding cut off.

    Hop ``h`` of the signal is the sum over ``i`` of the ``i``-th ``N1 / overlap`` rows ``n1`` of frame
    ``h - i``.
    """
    graph.scope = "overlap-add"
    factors = factorise(branch.n_fft, branch.hop)
    overlap = branch.n_fft // branch.hop
    hops, height = branch.frames + overlap - 1, factors.first // overlap
    rows, samples = math.prod(signal.shape[:-1]), signal.shape[-1]
    shifted = [
        graph.pad_last(graph.slice(x, 2, i * height, (i + 1) * height), 4, i, overlap - 1 - i)
        for i in range(overlap)
    ]
    total = reduce(lambda a, b: graph.op("Add", a, b), shifted)
    total = graph.reshape(total, rows, factors.last, factors.middle, height, hops)
    total = graph.op("Transpose", total, perm=[0, 4, 3, 2, 1])
    total = graph.reshape(total, rows, hops * branch.hop)
    offset = frame_offset(branch.n_fft, branch.hop)
    graph.reshape(graph.slice(total, 1, offset, offset + samples), *signal.shape, output=signal.name)
