"""What lower precision leaves in float32 of HDemucs and Demucs, beyond the general rules of precision.

    fold      the constant part of the norm folded into a DConv's last convolution, which cancels large terms
    lstm      LSTMs: a rounded state is what the next frame starts from, so that roundings add up over all frames
    polar     magnitudes and phases: a square in float16 overflows above 256 and vanishes below 0.0003
    last      of every branch's last decoder layer, what follows the products of its GLU, and for Demucs what follows
              the layer: halving the sample rate and putting the level back. Roundings there fall on the stems as they
              are, and the quietest suffers most

Bundles carry this as patterns of node names. Two general rules are named without patterns, where they have to match.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.export.families.demucs.float32 import BEHIND_PRODUCTS, Patterns
from mrsep_deploy.export.families.demucs.rewrite_layers import DConvLayer
from mrsep_deploy.export.families.demucs.sequence import BiLSTM, LocalAttention
from mrsep_deploy.export.families.hdemucs.bands import BandedDecoder
from mrsep_deploy.export.families.hdemucs.hybrid import HDemucs
from mrsep_deploy.export.families.hdemucs.stages import TIME
from mrsep_deploy.export.families.hdemucs.waveform import Demucs

OUTSIDE_LAYERS = ("Add*", "Conv*", "Div*", "Mul*", "Sub*")
"""Nodes of ``Demucs`` that are in no layer: those of a layer begin with its name."""


def float32_nodes(model: HDemucs | Demucs, stages: Sequence[Stage]) -> Patterns:
    """Returns what stays in float32 of a model as it is exported, rewritten, in these stages."""
    found: Patterns = {rule: {} for rule in ("norms", "attention", "fold", "lstm", "polar", "last")}
    magnitudes = isinstance(model, HDemucs) and not model.config.cac
    layers = list(_layers(model))
    for stage in stages:
        if stage.kind != "graph":
            continue
        core = stage.name == "core"
        own = [(name, layer) for name, layer, place in layers if core or place == stage.name]
        folds = [f"{name}.*.shift/*" for name, layer in own if _has(layer, DConvLayer)]
        last = [pattern for name, layer in own for pattern in _behind_products(model, name, layer)]
        if folds:
            found["norms"][stage.name] = ()
            found["fold"][stage.name] = tuple(folds)
        if any(_has(layer, LocalAttention) for _, layer in own):
            found["attention"][stage.name] = ()
        if any(_has(layer, BiLSTM) for _, layer in own):
            found["lstm"][stage.name] = ("*/LSTM*",)
        if magnitudes and (core or not own):
            # In one graph with everything else, they are the nodes of no layer.
            found["polar"][stage.name] = ("[A-Z]*",) if core else ("*",)
        if last:
            found["last"][stage.name] = tuple(last)
    return found


def _layers(model: HDemucs | Demucs) -> Iterator[tuple[str, nn.Module, str]]:
    """Yields every layer: its name in the model, itself, and the stage that it is in."""
    if isinstance(model, HDemucs):
        (n_fft,) = model.config.nfft_list
        inner = model.config.depth - model.merge  # the merging decoder's norms are in the bottleneck
        sides = [("", str(n_fft), model.encoder, model.decoder, inner)]
        sides.append(("t", TIME, model.tencoder, model.tdecoder, 0))
    else:
        sides = [("", TIME, model.encoder, model.decoder, model.config.depth - model.inner)]
        if model.lstm is not None:
            yield "lstm", model.lstm, "bottleneck"
    for prefix, branch, encoder, decoder, inner in sides:
        for index, layer in enumerate(encoder):
            outer = index < len(encoder) - inner
            yield f"{prefix}encoder.{index}", layer, f"encoder.{branch}" if outer else "bottleneck"
        for index, layer in enumerate(decoder):
            yield f"{prefix}decoder.{index}", layer, "bottleneck" if index < inner else f"decoder.{branch}"


def _has(layer: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in layer.modules())


def _behind_products(model: HDemucs | Demucs, name: str, layer: nn.Module) -> Iterator[str]:
    """Yields patterns for what follows the products of the GLU, if this is a branch's last decoder layer."""
    if isinstance(model, Demucs):
        if layer is model.decoder[-1]:
            yield from (f"{name}.0/*", f"{name}.[1-9]*", *OUTSIDE_LAYERS)
    elif layer in (model.decoder[-1], model.tdecoder[-1]):
        bands = isinstance(layer, BandedDecoder)
        yield from (f"{name}.{'layers.*.' if bands else ''}{pattern}" for pattern in BEHIND_PRODUCTS)
        if bands:
            yield f"{name}/*"
