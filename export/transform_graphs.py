"""Spectrograms, inverses, normalisation and sums as ONNX graphs, for engines that run them on a device.

The same functions as :mod:`mrsep_deploy.spectrogram`, so that a segment goes from mix to stems without
leaving a GPU. They hold matrix products, reductions, element-wise arithmetic and moves of whole blocks, which
every engine runs: no ``STFT``, ``DFT``, ``Col2Im``, ``Gather`` or ``Scatter``. All are float32;
:mod:`~mrsep_deploy.export.factored_dft` derives the products and says how true they are.

Shapes are written as in the manifest, with ``R`` for rows of real transforms (items times audio channels, and
sources), ``H`` hops, and ``N1``, ``N2`` for the factors of ``n_fft``. Frames lie along the last axis from
beginning to end, so that both products leave their result where the next step wants it, and the
spectrogram comes out as the model reads it: the only transposes are those of the signal itself,
a quarter (or half) of a spectrogram's size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mrsep_deploy.export import factored_dft
from mrsep_deploy.export.factored_dft import Factors, factorise
from mrsep_deploy.export.onnx_builder import GraphBuilder
from mrsep_deploy.manifest import Branch, Stage, TensorSpec
from mrsep_deploy.spectrogram import NORMALISE_EPS, frame_offset


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
    factors = factorise(branch.n_fft, branch.hop)
    rows, bins = math.prod(mix.shape[:-1]), branch.bins
    frames = _frames(graph, branch, factors, mix)
    graph.scope = "dft"
    first = graph.constant(factored_dft.forward_first(factors)[None], "first")
    second = graph.constant(factored_dft.forward_second(factors)[None], "second")
    # [1, N2, 2 N1, N1] @ [R, N2, N1, T] -> [R, N2, (re/im, k1), T] = [R, (N2, re/im), (k1, T)]
    x = graph.op("MatMul", first, frames)
    x = graph.reshape(x, rows, 2 * factors.second, factors.first * branch.frames)
    # [1, N2, 2 N2] @ that -> [R, (re/im, k2), (k1, T)] = [B, 2C, F, T], for k = k1 + N1 k2
    x = graph.op("MatMul", second, x)
    shape = (mix.shape[0], 2 * mix.shape[1], bins, branch.frames)
    _normalise(graph, graph.reshape(x, *shape), shape, outputs)


def _frames(graph: GraphBuilder, branch: Branch, factors: Factors, mix: TensorSpec) -> str:
    """``[B, C, L]`` -> ``[R, N2, N1, T]``: sample ``N2 n1 + n2`` of every frame.

    A hop is ``N1 / overlap`` whole rows ``n1``, so frame ``t`` is the hops ``t .. t + overlap - 1`` on top of each
    other: the transposed signal next to itself, shifted by one hop each time.
    """
    graph.scope = "frames"
    overlap = branch.n_fft // branch.hop
    hops = branch.frames + overlap - 1
    rows = math.prod(mix.shape[:-1])
    x = _padded(graph, mix, frame_offset(branch.n_fft, branch.hop), hops * branch.hop)
    x = graph.reshape(x, rows, hops, factors.first // overlap, factors.second)
    x = graph.op("Transpose", x, perm=[0, 3, 2, 1])
    shifted = [graph.slice(x, 3, hop, hop + branch.frames) for hop in range(overlap)]
    return graph.op("Concat", *shifted, axis=2)


def _padded(graph: GraphBuilder, mix: TensorSpec, left: int, length: int) -> str:
    """``[B, C, L]`` reflected at both ends, as :func:`mrsep_deploy.spectrogram.reflect` does, and cut to ``length``.

    The padding it is given there is ``left`` on both sides and what the last hop lacks; a hop of half a frame
    needs one hop less than that, which is cut off again.
    """
    samples = mix.shape[-1]
    hop_end = length - left if length - 2 * left >= samples else length
    right = max(left + _missing(samples, length, left), 0)
    del hop_end
    x = mix.name
    if samples <= max(left, right):
        extra = max(left, right) - samples + 1
        extra_right = min(right, extra)
        x = graph.pad_last(x, 3, extra - extra_right, extra_right)
        left, right, samples = left - (extra - extra_right), right - extra_right, samples + extra
    return x
