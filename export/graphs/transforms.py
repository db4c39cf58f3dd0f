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

import numpy as np

from mrsep_deploy.bundle.manifest import Branch, Stage, TensorSpec, Transform
from mrsep_deploy.export.graphs import dft
from mrsep_deploy.export.graphs.build import GraphBuilder
from mrsep_deploy.export.graphs.dft import factorise
from mrsep_deploy.transforms.spectrogram import NORMALISE_EPS, Float64, envelope

SHORT_SUM = 1024
"""Terms that one float32 accumulator adds with an error of 1e-6 (about ``6e-8 sqrt(n) / 2``)."""


def transform_graph(stage: Stage, branches: Sequence[Branch], tensors: Mapping[str, TensorSpec]) -> bytes:
    """The ONNX model of a stage whose kind is not ``graph``.

    Args:
        stage: which one; the model's inputs and outputs have its names and order.
        branches: the manifest's branches.
        tensors: the manifest's tensors by name.

    Raises:
        ValueError: the stage is of kind ``graph``.
    """
    inputs, outputs = ([tensors[name] for name in names] for names in (stage.inputs, stage.outputs))
    named = {branch.name: branch for branch in branches}
    graph = GraphBuilder(stage.name)
    if stage.kind == "sum":
        _sum(graph, inputs, outputs[0])
    elif stage.kind in ("spectrogram", "normalize"):
        _analysis(graph, named[stage.branch], inputs[0], outputs)
    elif stage.kind in ("inverse", "denormalize"):
        _synthesis(graph, named[stage.branch], inputs, outputs[0])
    else:
        raise ValueError(f"stage {stage.name} of kind {stage.kind} is a graph of its own")
    return graph.serialise(inputs, outputs)


def _sum(graph: GraphBuilder, signals: Sequence[TensorSpec], stems: TensorSpec) -> None:
    """``[B, S, C, L]`` each; one addition a signal."""
    *first, last = (signal.name for signal in signals)
    if first:
        graph.op("Add", graph.added(first), last, output=stems.name)
    else:
        graph.op("Identity", last, output=stems.name)


# --- analysis


def _analysis(graph: GraphBuilder, branch: Branch, mix: TensorSpec, outputs: Sequence[TensorSpec]) -> None:
    """mix ``[B, C, L]`` -> spectrogram ``[B, 2C, F, T]`` or waveform, and statistics ``[B, 2]`` if normalised."""
    x, item, transform = mix.name, mix.shape[1:], branch.transform
    if transform is not None:
        frames = _frames(graph, transform, mix)
        x = _forward(graph, transform, frames)
        if transform.nyquist:
            x = _with_nyquist(graph, transform, x, frames)
        item = (2 * mix.shape[1], transform.bins, transform.frames)
    if branch.normalise:
        _normalise(graph, x if transform is None else graph.reshape(x, *item), item, outputs)
    elif transform is None:
        graph.op("Identity", x, output=outputs[0].name)
    else:
        graph.reshape(x, *item, output=outputs[0].name)


def _forward(graph: GraphBuilder, transform: Transform, x: str) -> str:
    """Frames ``[R, (n3, n2), n1, T]`` -> spectrogram ``[R, (re/im, k3), (k2, k1, T)]``, ``k1`` fastest: by bins."""
    factors = factorise(transform.n_fft, transform.hop)
    graph.scope = "dft"
    x = graph.product(dft.first_product(factors, dft.analysis_window(transform)), x, "first")
    # [R, (n3, n2), (re/im, k1), T] = [R, n3, (n2, re/im), (k1, T)]
    if factors.middle > 1:
        x = graph.reshape(x, factors.last, 2 * factors.middle, factors.first * transform.frames)
        x = graph.product(dft.middle_product(factors), x, "middle")
        # [R, n3, (re/im, k2), (k1, T)] = [R, (n3, re/im), (k2, k1, T)]
    x = graph.reshape(x, 2 * factors.last, factors.middle * factors.first * transform.frames)
    return graph.product(dft.last_product(factors), x, "last")


def _with_nyquist(graph: GraphBuilder, transform: Transform, x: str, frames: str) -> str:
    """The spectrogram below the Nyquist bin, and that bin, which is real: ``[R, 2, F, T]``."""
    factors = factorise(transform.n_fft, transform.hop)
    graph.scope = "nyquist"
    frames = graph.reshape(frames, transform.n_fft, transform.frames)
    alternating = dft.nyquist_product(factors, dft.analysis_window(transform))
    real = graph.reshape(graph.product(alternating, frames, "alternating"), 1, 1, transform.frames)
    both = graph.op("Concat", real, graph.op("Sub", real, real), axis=1)
    below = graph.reshape(x, 2, transform.n_fft // 2, transform.frames)
    return graph.op("Concat", below, both, axis=2)


def _frames(graph: GraphBuilder, transform: Transform, mix: TensorSpec) -> str:
    """``[B, C, L]`` -> ``[R, (n3, n2), n1, T]``: the samples ``n`` of every frame.

    Frame ``t`` is the hops ``t .. t + overlap - 1`` in a row. Where a hop is ``N1 / overlap`` whole rows ``n1``, it
    is these on top of each other: the transposed signal several times, shifted by one hop each time. Elsewhere
    the frames are put together first, and transposed then.
    """
    graph.scope = "frames"
    n_fft, hop, overlap, frames = transform.n_fft, transform.hop, transform.overlap, transform.frames
    factors = factorise(n_fft, hop)
    hops = frames + overlap - 1
    x = _padded(graph, transform, mix)
    extended = transform.offset + mix.shape[-1] + transform.after
    if hops * hop < extended:
        x = graph.slice(x, 2, 0, hops * hop)  # some samples are in no frame
    elif hops * hop > extended:
        x = graph.pad_last(x, 3, 0, hops * hop - extended)  # of the last hop, frames hold a part
    if factors.first % overlap == 0 and n_fft % hop == 0:
        height = factors.first // overlap
        x = graph.reshape(x, hops, height, factors.middle, factors.last)
        x = graph.op("Transpose", x, perm=[0, 4, 3, 2, 1])
        x = graph.reshape(x, factors.rest, height, hops)
        shifted = [graph.slice(x, 3, i, i + frames) for i in range(overlap)]
        return graph.op("Concat", *shifted, axis=2)
    x = graph.reshape(x, hops, hop)
    shifted = [graph.slice(x, 1, i, i + frames) for i in range(overlap)]
    x = graph.op("Concat", *shifted, axis=2)
    if overlap * hop > n_fft:
        x = graph.slice(x, 2, 0, n_fft)
    x = graph.reshape(x, frames, factors.first, factors.middle, factors.last)
    x = graph.op("Transpose", x, perm=[0, 4, 3, 2, 1])
    return graph.reshape(x, factors.rest, factors.first, frames)


def _padded(graph: GraphBuilder, transform: Transform, mix: TensorSpec) -> str:
    """``[B, C, L]`` -> ``[B, C, offset + L + after]``, extended as ``spectrogram.extend`` does."""
    x, samples = mix.name, mix.shape[-1]
    left, right = transform.offset, transform.after
    if transform.padding == "zeros":
        return graph.pad_last(x, 3, left, right)
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


def _normalise(graph: GraphBuilder, x: str, item: Sequence[int], outputs: Sequence[TensorSpec]) -> None:
    """``[B, ...]`` -> ``(x - mean) / (1e-5 + std)`` per item, and (mean, unbiased std) ``[B, 2]``."""
    graph.scope = "normalise"
    normalised, statistics = outputs
    count, one = math.prod(item), [1] * len(item)
    mean = graph.op("Mul", _total(graph, x, item), graph.number(1 / count, "1/count"))
    centred = graph.op("Sub", x, graph.reshape(mean, *one))
    power = _total(graph, graph.op("Mul", centred, centred), item)
    variance = graph.op("Mul", power, graph.number(1 / max(count - 1, 1), "1/(count-1)"))
    std = graph.op("Sqrt", variance)
    graph.op("Concat", mean, std, axis=1, output=statistics.name)
    scale = graph.op("Reciprocal", graph.op("Add", std, graph.number(NORMALISE_EPS, "epsilon")))
    graph.op("Mul", centred, graph.reshape(scale, *one), output=normalised.name)


def _total(graph: GraphBuilder, x: str, item: Sequence[int]) -> str:
    """Sum of every item of ``[B, ...]`` as ``[B, 1]``, in steps of about a thousand terms at most.

    Engines accumulate a reduction in one float32; over millions of terms that alone costs 40 dB. OpenVINO
    joins reductions that follow each other, so there is a change of shape between them.
    """
    count = math.prod(item)
    if len(item) == 3:  # a spectrogram: its frames first, which lie together as they are
        x = graph.op("ReduceSum", x, graph.integers(3), keepdims=0)
        count //= item[2]
    while count > 1:
        block = _block(count)
        blocks = -(-count // block)
        x = graph.reshape(x, count)
        if blocks * block > count:
            x = graph.pad_last(x, 2, 0, blocks * block - count)
        x = graph.op("ReduceSum", graph.reshape(x, blocks, block), graph.integers(2), keepdims=0)
        count = blocks
    return graph.reshape(x, 1)


def _block(count: int) -> int:
    """How many terms to add at a time: all of a few, else about the square root, a divisor if there is one."""
    if count <= SHORT_SUM:
        return count
    root = math.isqrt(count - 1) + 1
    return next((block for block in range(root, 2 * root) if count % block == 0), root)


def _denormalise(
    graph: GraphBuilder, x: str, statistics: TensorSpec | None, gains: Float64, output: str | None = None
) -> str:
    """``(x std + mean) gain``, for constant ``gains`` that broadcast over ``x`` as ``x[0]`` does.

    One product and one sum over ``x``: gains are multiplied into the statistics, which are few. Without
    statistics, ``x gain``.
    """
    graph.scope = "denormalise"
    gain = graph.constant(gains.astype(np.float32), "gains")
    if statistics is None:
        return graph.op("Mul", x, gain, output=output)
    mean, std = (
        graph.reshape(graph.slice(statistics.name, 1, i, i + 1), *[1] * (gains.ndim - 1)) for i in range(2)
    )
    x = graph.op("Mul", x, graph.op("Mul", std, gain))
    return graph.op("Add", x, graph.op("Mul", mean, gain), output=output)


# --- synthesis


def _synthesis(graph: GraphBuilder, branch: Branch, inputs: Sequence[TensorSpec], signal: TensorSpec) -> None:
    """estimate ``[B, 2 S C, F, T]`` or ``[B, S C, L]``, statistics ``[B, 2]`` if normalised -> ``[B, S, C, L]``."""
    transform, statistics = branch.transform, inputs[1] if branch.normalise else None
    _, sources, channels, _ = signal.shape
    gains = np.array(branch.gains)
    if transform is None:
        x = graph.reshape(inputs[0].name, *signal.shape[1:])
        _denormalise(graph, x, statistics, gains.reshape(1, -1, 1, 1), output=signal.name)
        return
    x = graph.reshape(inputs[0].name, sources, 2 * channels, transform.bins, transform.frames)
    halved = np.ones(transform.bins)
    halved[0] = 0.5  # the one bin that is not there twice, see dft
    x = _denormalise(graph, x, statistics, np.outer(gains, halved).reshape(1, sources, 1, transform.bins, 1))
    if transform.nyquist:
        x = graph.reshape(x, 2, transform.bins, transform.frames)
        below = graph.slice(x, 2, 0, transform.n_fft // 2)
        frames = graph.op("Add", _backward(graph, transform, below), _from_nyquist(graph, transform, x))
    else:
        frames = _backward(graph, transform, x)
    _overlap_add(graph, transform, frames, signal)


def _backward(graph: GraphBuilder, transform: Transform, x: str) -> str:
    """Spectrogram ``[R, 2, F, T]``, bin 0 halved -> windowed frames ``[R, (n3, n2), n1, T]``: ``_forward`` reversed."""
    factors = factorise(transform.n_fft, transform.hop)
    graph.scope = "dft"
    x = graph.reshape(x, factors.last, factors.middle * factors.first * transform.frames)
    x = graph.product(dft.transposed(dft.last_product(factors)), x, "last")
    # [R, (n3, re/im), (k2, k1, T)] = [R, n3, (re/im, k2), (k1, T)]
    if factors.middle > 1:
        x = graph.reshape(x, factors.last, 2 * factors.middle, factors.first * transform.frames)
        x = graph.product(dft.transposed(dft.middle_product(factors)), x, "middle")
        # [R, n3, (n2, re/im), (k1, T)] = [R, (n3, n2), (re/im, k1), T]
    x = graph.reshape(x, factors.rest, 2 * factors.first, transform.frames)
    first = dft.first_product(factors, 2 * dft.synthesis_window(transform))
    return graph.product(dft.transposed(first), x, "first")


def _from_nyquist(graph: GraphBuilder, transform: Transform, x: str) -> str:
    """Spectrogram ``[R, 2, F, T]`` -> what its Nyquist bin, whose real part counts, gives of every frame."""
    factors = factorise(transform.n_fft, transform.hop)
    graph.scope = "nyquist"
    half = transform.n_fft // 2
    real = graph.slice(graph.slice(x, 2, half, half + 1), 1, 0, 1)
    real = graph.reshape(real, 1, transform.frames)
    alternating = dft.nyquist_product(factors, dft.synthesis_window(transform))
    frames = graph.product(dft.transposed(alternating), real, "alternating")
    return graph.reshape(frames, factors.rest, factors.first, transform.frames)


def _overlap_add(graph: GraphBuilder, transform: Transform, x: str, signal: TensorSpec) -> None:
    """Frames ``[R, (n3, n2), n1, T]`` -> ``[B, S, C, L]``: ``_frames`` reversed, then what extends it cut off.

    Hop ``h`` of the signal is the sum over ``i`` of the ``i``-th hop of frame ``h - i``.
    """
    graph.scope = "overlap-add"
    n_fft, hop, overlap, frames = transform.n_fft, transform.hop, transform.overlap, transform.frames
    factors = factorise(n_fft, hop)
    hops, samples = frames + overlap - 1, signal.shape[-1]
    if factors.first % overlap == 0 and n_fft % hop == 0:
        height = factors.first // overlap
        pieces = [graph.slice(x, 2, i * height, (i + 1) * height) for i in range(overlap)]
        shifted = [graph.pad_last(piece, 4, i, overlap - 1 - i) for i, piece in enumerate(pieces)]
        total = graph.reshape(graph.added(shifted), factors.last, factors.middle, height, hops)
        total = graph.op("Transpose", total, perm=[0, 4, 3, 2, 1])
    else:
        x = graph.reshape(x, factors.last, factors.middle, factors.first, frames)
        x = graph.op("Transpose", x, perm=[0, 4, 3, 2, 1])
        x = graph.reshape(x, frames, n_fft)
        if overlap * hop > n_fft:
            x = graph.pad_last(x, 3, 0, overlap * hop - n_fft)
        pieces = [graph.slice(x, 2, i * hop, (i + 1) * hop) for i in range(overlap)]
        shifted = [graph.pad(piece, (0, i, 0), (0, overlap - 1 - i, 0)) for i, piece in enumerate(pieces)]
        total = graph.added(shifted)
    total = graph.reshape(total, hops * hop)
    total = graph.slice(total, 1, transform.lead, transform.lead + samples)
    if not dft.divided(transform):
        inverse = graph.constant((1 / envelope(transform)[:samples]).astype(np.float32), "1/envelope")
        total = graph.op("Mul", total, inverse)
    graph.reshape(total, *signal.shape[1:], output=signal.name)
