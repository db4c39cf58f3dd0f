"""Which outputs a song has: the model's sources, some of them, or one of them and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mrsep_deploy.audio.info import Samples
from mrsep_deploy.errors import UsageError

OtherMethod = Literal["add", "minus", "none"]


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

    def make(self, stems: Samples, mix: Samples | None) -> Samples:
        """Samples ``[C, n]`` from stems ``[S, C, n]`` and, where it is needed, the mix ``[C, n]``."""
        total: Samples = stems[self.sources[0]]
        for source in self.sources[1:]:
            total = total + stems[source]
        if not self.from_mix:
            return total
        assert mix is not None
        return mix - total


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
    if two_stems is None:
        every = [Output(name, (index,)) for index, name in enumerate(sources)]
    elif two_stems in sources:
        index = list(sources).index(two_stems)
        others = tuple(other for other in range(len(sources)) if other != index)
        every = [Output(two_stems, (index,))]
        if other_method == "minus":
            every.append(Output(f"minus_{two_stems}", (index,), from_mix=True))
        elif other_method == "add" and others:
            every.append(Output(f"no_{two_stems}", others))
    else:
        raise UsageError(f"there is no stem {two_stems}", f"The model has {', '.join(sources)}.")
    names = [output.name for output in every]
    unknown = [name for name in stems if name not in names]
    if unknown:
        raise UsageError(f"there is no stem {', '.join(unknown)}", f"There are {', '.join(names)}.")
    return tuple(output for output in every if not stems or output.name in stems)
