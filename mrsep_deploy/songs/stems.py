"""Which outputs a song has: the model's sources, some of them, or one of them and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.errors import UsageError

Float32 = NDArray[np.float32]
OtherMethod = Literal["add", "minus", "none"]
OTHER_METHODS: tuple[OtherMethod, ...] = ("add", "minus", "none")


@dataclass(frozen=True)
class Output:
    """One file of a song.

    Attributes:
        name: the ``{stem}`` of its name.
        sources: which of the model's sources it is the sum of.
        from_mix: it is the mix less these instead.
    """

    name: str
    sources: tuple[int, ...]
    from_mix: bool = False

    def make(self, stems: Float32, mix: Float32 | None) -> Float32:
        """Samples ``[C, n]`` from stems ``[S, C, n]`` and, where it is needed, the mix ``[C, n]``."""
        total: Float32 = stems[self.sources[0]]
        for source in self.sources[1:]:
            total = total + stems[source]
        if not self.from_mix:
            return total
        assert mix is not None
        rest: Float32 = mix - total
        return rest


def choose_outputs(
    sources: Sequence[str],
    stems: Sequence[str] = (),
    two_stems: str | None = None,
    other_method: OtherMethod = "add",
) -> tuple[Output, ...]:
    """The outputs that were asked for, named as Demucs names them.

    Args:
        sources: of the model.
        stems: names of the outputs to keep; none for all.
        two_stems: a source, which then has one counterpart: ``no_STEM``, the sum of the others (``add``), or
            ``minus_STEM``, the mix less the source (``minus``), or none.

    Raises:
        UsageError: there is no such source or output.
    """
    every = _two(sources, two_stems, other_method) if two_stems is not None else _all(sources)
    names = [output.name for output in every]
    unknown = [name for name in stems if name not in names]
    if unknown:
        raise UsageError(f"there is no stem {', '.join(unknown)}", f"There are {', '.join(names)}.")
    return tuple(output for output in every if not stems or output.name in stems)


def _all(sources: Sequence[str]) -> list[Output]:
    return [Output(name, (index,)) for index, name in enumerate(sources)]


def _two(sources: Sequence[str], chosen: str, method: OtherMethod) -> list[Output]:
    if chosen not in sources:
        raise UsageError(f"there is no stem {chosen}", f"The model has {', '.join(sources)}.")
    index = list(sources).index(chosen)
    others = tuple(other for other in range(len(sources)) if other != index)
    counterpart = {
        "add": [Output(f"no_{chosen}", others)] if others else [],
        "minus": [Output(f"minus_{chosen}", (index,), from_mix=True)],
        "none": [],
    }
    return [Output(chosen, (index,)), *counterpart[method]]
