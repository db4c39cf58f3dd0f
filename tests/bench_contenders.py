"""Contenders that go wrong in measuring processes, each in its own way; the tiny bundle is what they run."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bench.contenders import Contender, Float32
from mrsep_deploy.bench.ours import OurContender
from mrsep_deploy.errors import EngineError, EngineUnavailableError


class Wrong(OurContender):
    """Gives the second stem in the first one's place: fast, and no separation."""

    def segments(self, mix: Float32) -> NDArray[Any]:
        return np.ascontiguousarray(super().segments(mix)[:, ::-1])


class WrongLater(OurContender):
    """Right until it has run four times."""

    runs = 0

    def segments(self, mix: Float32) -> NDArray[Any]:
        self.runs += 1
        return super().segments(mix) * (1.0 if self.runs < 5 else 1.5)


class NotFinite(OurContender):
    def segments(self, mix: Float32) -> NDArray[Any]:
        stems = super().segments(mix).copy()
        stems[0, 0, 0, 3] = np.nan
        return stems


class Absent(OurContender):
    def __init__(self, contender: Contender) -> None:
        raise EngineUnavailableError("there is no such library", "pip install it")


class BreaksInARound(OurContender):
    runs = 0

    def segments(self, mix: Float32) -> NDArray[Any]:
        self.runs += 1
        if self.runs == 4:
            raise EngineError("stage bottleneck failed: out of memory")
        return super().segments(mix)


class Dies(OurContender):
    """Takes its process along, as a library's crash does."""

    runs = 0

    def segments(self, mix: Float32) -> NDArray[Any]:
        self.runs += 1
        if self.runs == 3:
            os.write(2, b"Segmentation fault of a library\n")
            os._exit(9)
        return super().segments(mix)


class Chatty(OurContender):
    """Prints where the answers go."""

    def segments(self, mix: Float32) -> NDArray[Any]:
        print("loading ...")
        os.write(1, b"100 %\n")
        return super().segments(mix)
