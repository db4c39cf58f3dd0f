"""Bands in groups of one width: a batched matrix product for each width instead of a small one for each band.

Published models have 60 or 62 bands of six to some twenty widths. The bins of a spectrogram are gathered once, group
after group, so that every group is a slice; bands that stand in another order than their groups are gathered into
theirs. Where bands overlap, the mean of their masks is half the sum of two gathers: a bin that is in one band only is
gathered twice, and half the sum of two equal numbers is that number, exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mrsep_deploy.export.families.roformer.bands import Band, memberships
from mrsep_deploy.export.families.roformer.layers import RMSNorm, unit
from mrsep_deploy.export.families.roformer.model import BandSplit, MaskEstimator


def grouped(bands: Sequence[Band]) -> list[list[int]]:
    """Indices of the bands by their width, in the order in which widths first occur."""
    groups: dict[int, list[int]] = {}
    for index, band in enumerate(bands):
        groups.setdefault(band.width, []).append(index)
    return list(groups.values())


class Gather(nn.Module):
    """Items of an axis in another order, some perhaps twice; nothing to do where the order is theirs."""

    def __init__(self, places: Sequence[int], axis: int, size: int) -> None:
        super().__init__()
        self.axis, self.same = axis, list(places) == list(range(size))
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.places, Tensor)
        return x if self.same else x.index_select(self.axis, self.places)


class Linears(nn.Module):
    """A linear layer for every band of a group: ``[B, K, T, n]`` -> ``[B, K, T, m]``.

    Args:
        weights: ``[m, n]`` for each band.
        biases: ``[m]`` for each band.
    """

    def __init__(self, weights: Iterable[Tensor], biases: Iterable[Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([weight.T for weight in weights])[None])
        self.bias = nn.Parameter(torch.stack(list(biases))[None, :, None])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class GroupedBandSplit(nn.Module):
    """What a :class:`BandSplit` computes; the gains of its norms are folded into its linear layers."""

    def __init__(self, split: BandSplit, bins: int) -> None:
        super().__init__()
        groups = grouped(split.bands)
        order = [index for group in groups for index in group]
        every = [bin for index in order for bin in range(split.bands[index].start, split.bands[index].stop)]
        self.sizes = [(len(group), split.bands[group[0]].width) for group in groups]
        self.bins = Gather(every, 2, bins)
        self.back = Gather([order.index(index) for index in range(len(order))], 1, len(order))
        self.groups = nn.ModuleList(_folded(split, group) for group in groups)

    def forward(self, x: Tensor) -> Tensor:
        """Spectrogram ``[B, 2C, F, T]`` -> tokens ``[B, K, T, D]``."""
        x = self.bins(x)
        parts = torch.split(x, [count * width for count, width in self.sizes], dim=2)
        tokens = [
            layer(unit(torch.unflatten(part, 2, size).permute(0, 2, 4, 3, 1).flatten(3)))
            for part, size, layer in zip(parts, self.sizes, self.groups, strict=True)
        ]
        joined: Tensor = self.back(torch.cat(tokens, dim=1))
        return joined


def _folded(split: BandSplit, group: Sequence[int]) -> Linears:
    weights, biases = [], []
    for index in group:
        norm, linear = split.to_features[index].children()
        assert isinstance(norm, RMSNorm)
        assert isinstance(linear, nn.Linear)
        weights.append(linear.weight * norm.gamma)
        biases.append(linear.bias)
    return Linears(weights, biases)


class MaskEnd(nn.Module):
    """The last layer of a group's masks and its gate, as two products: GLU without a split."""

    def __init__(self, linears: Sequence[nn.Linear], width: int) -> None:
        super().__init__()
        half = linears[0].out_features // 2
        self.width = width
        self.value = Linears([x.weight[:half] for x in linears], [x.bias[:half] for x in linears])
        self.gate = Linears([x.weight[half:] for x in linears], [x.bias[half:] for x in linears])

    def forward(self, x: Tensor) -> Tensor:
        """``[B, K, T, n]`` -> masks ``[B, 2C, K w, T]``."""
        mask: Tensor = self.value(x) * self.gate(x).sigmoid()
        return torch.unflatten(mask, -1, (self.width, -1)).permute(0, 4, 1, 3, 2).flatten(2, 3)


class GroupedMasks(nn.Module):
    """What a :class:`MaskEstimator` computes."""

    def __init__(self, masks: MaskEstimator) -> None:
        super().__init__()
        groups = grouped(masks.bands)
        order = [index for group in groups for index in group]
        layers = [[x for x in masks.to_freqs[index][0] if isinstance(x, nn.Linear)] for index in order]  # type: ignore[index]
        self.order = Gather(order, 1, len(order))
        inner = (list(each) for each in zip(*(networks[:-1] for networks in layers), strict=True))
        self.inner = nn.ModuleList(
            Linears([x.weight for x in each], [x.bias for x in each]) for each in inner
        )
        self.counts = [len(group) for group in groups]
        last = iter(networks[-1] for networks in layers)
        self.ends = nn.ModuleList(
            MaskEnd([next(last) for _ in group], masks.bands[group[0]].width) for group in groups
        )
        places = memberships([masks.bands[index] for index in order], masks.bins)
        assert max(map(len, places)) <= 2, "triangles of a filter bank overlap with their neighbours only"
        written = sum(band.width for band in masks.bands)
        self.overlap = max(map(len, places)) > 1
        self.first = Gather([each[0] for each in places], 2, written)
        self.second = Gather([each[-1] for each in places], 2, written)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B, K, T, D]`` -> mask ``[B, 2C, F, T]``."""
        x = self.order(x)
        for layer in self.inner:
            x = layer(x).tanh()
        parts = zip(torch.split(x, self.counts, dim=1), self.ends, strict=True)
        mask = torch.cat([end(part) for part, end in parts], dim=2)
        first: Tensor = self.first(mask)
        return (first + self.second(mask)) * 0.5 if self.overlap else first
