"""Blocks of samples: a first-in-first-out queue of them, and where one holds NaN or infinity."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
"""Samples ``[..., n]``: audio ``[channels, n]`` or stems ``[sources, channels, n]``, n as it comes."""


class BlockQueue:
    """Samples in the order in which they came: blocks of any length go in, any number of samples comes out.

    ``len`` is the number of samples in it. A block that was pushed must not be changed afterwards.
    """

    def __init__(self) -> None:
        self._blocks: deque[Float32] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, block: Float32) -> None:
        """Append ``[..., n]``; an empty block changes nothing."""
        if block.shape[-1]:
            self._blocks.append(block)
            self._count += block.shape[-1]

    def first(self, count: int) -> Float32:
        """A copy of the first ``count`` samples, ``[..., count]``, contiguous.

        Raises:
            ValueError: there are fewer, or none was asked for.
        """
        if not 0 < count <= self._count:
            raise ValueError(f"{count} samples were asked for, there are {self._count}")
        parts = []
        for block in self._blocks:
            parts.append(block[..., :count])
            count -= parts[-1].shape[-1]
            if not count:
                break
        return np.ascontiguousarray(np.concatenate(parts, axis=-1))

    def drop(self, count: int) -> None:
        """Forget the first ``count`` samples, or all if there are fewer."""
        self._count -= min(count, self._count)
        while self._blocks and count >= self._blocks[0].shape[-1]:
            count -= self._blocks.popleft().shape[-1]
        if self._blocks and count:
            self._blocks[0] = self._blocks[0][..., count:]

    def take(self, count: int) -> Float32:
        """Remove the first ``count`` samples and return them as ``first`` does."""
        taken = self.first(count)
        self.drop(count)
        return taken


def reblock(blocks: Iterable[Float32], count: int) -> Iterator[Float32]:
    """Yield the same samples in blocks of ``count``; the last one is shorter."""
    queue = BlockQueue()
    for block in blocks:
        queue.push(block)
        while len(queue) >= count:
            yield queue.take(count)
    if len(queue):
        yield queue.take(len(queue))


def first_nonfinite(block: Float32) -> int | None:
    """Index of the first sample ``[..., n]`` that is NaN or infinite in any channel; None if there is none."""
    bad = ~np.isfinite(block).all(axis=tuple(range(block.ndim - 1)))
    return int(bad.argmax()) if bad.any() else None
