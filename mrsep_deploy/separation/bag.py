"""Bags: several models that separate a song together, each with a weight for every source.

    models = ["f7e0c4bc", "d12395a8"]           # exported models by name, or bundles by their path from here
    weights = [[1, 0, 0, 0], [0, 1, 1, 1]]      # for each model, one for each source; all equal if left out
    segment = 6                                 # seconds; the models' own if left out

is a bag in TOML. Demucs' own bags, in YAML, have the same keys; their signatures stand for models exported under
these names.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import random
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.audio.blocks import BlockQueue
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.registry import resolve
from mrsep_deploy.errors import MrsepError, UsageError, first_line
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.separation.shifts import draw_leads
from mrsep_deploy.separation.stream import Separated, Song

Float32 = NDArray[np.float32]

SUFFIXES = (".toml", ".yaml", ".yml")
MAX_BYTES = 2**16
MAX_MODELS = 64
KEYS = ("models", "weights", "segment")


@dataclass(frozen=True)
class Bag:
    """Models and how much each counts.

    Attributes:
        name: of the bag: the stem of its file.
        weights: [model][source].
        segment: seconds per segment, if the bag sets it.
    """

    name: str
    bundles: tuple[Bundle, ...]
    weights: tuple[tuple[float, ...], ...]
    segment: float | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        return self.bundles[0].manifest.model.sources

    @property
    def digest(self) -> str:
        """A name for all that decides what the bag computes."""
        text = json.dumps([[bundle.digest for bundle in self.bundles], self.weights, self.segment])
        return hashlib.sha256(text.encode()).hexdigest()


def is_bag(model: str | None) -> bool:
    """Whether what was named is a bag's file."""
    return model is not None and model.lower().endswith(SUFFIXES)


def open_bag(path: str | Path, verify: bool = True) -> Bag:
    """Read a bag and open its models.

    Raises:
        UsageError: the file is no bag, or its models do not fit together or with the weights.
        BundleError: a bundle is damaged.
    """
    path = Path(path)
    content = _parsed(path)
    names = content.get("models")
    if not isinstance(names, list) or not 1 <= len(names) <= MAX_MODELS or not set(content) <= set(KEYS):
        raise UsageError(
            f"{path} is no bag, expected a list of models, and maybe weights and a segment", _fix(path)
        )
    if not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path} has a model that is no text", f"Put the names in quotes. {_fix(path)}")
    bundles = tuple(Bundle.open(_place(path, name), verify=verify) for name in names)
    first = bundles[0].manifest.model
    for name, bundle in zip(names, bundles, strict=True):
        model = bundle.manifest.model
        same = ("sources", "sample_rate", "audio_channels")
        if any(getattr(model, key) != getattr(first, key) for key in same):
            raise UsageError(
                f"the models {names[0]} and {name} of {path} differ in sources, sample rate or channels",
                "A bag is made of models that separate the same.",
            )
    weights = _weights(path, content.get("weights"), len(bundles), len(first.sources))
    segment = content.get("segment")
    if segment is not None and not _is_number(segment):
        raise UsageError(f"{path} has the segment {segment!r}, expected seconds", _fix(path))
    return Bag(path.stem, bundles, weights, segment)


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"the bag {path} cannot be read: {error.strerror or error}", "Check the path."
        ) from error
    try:
        content = _toml(data) if path.suffix.lower() == ".toml" else _yaml(data)
    except MrsepError:
        raise
    except Exception as error:  # yaml raises whatever making a date or a number of a text raises
        raise UsageError(f"the bag {path} cannot be read: {first_line(error)}", _fix(path)) from error
    if len(data) > MAX_BYTES or not isinstance(content, dict):
        raise UsageError(f"{path} is no bag", _fix(path))
    return content


def _toml(data: bytes) -> object:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(data.decode())


def _yaml(data: bytes) -> object:
    try:
        import yaml
    except ImportError as error:
        raise UsageError(
            "a bag in YAML needs the package pyyaml, not installed here",
            "Run pip install pyyaml, or use TOML.",
        ) from error
    return yaml.safe_load(data)


def _place(path: Path, name: str) -> Path:
    """The bundle of that name, or at that place seen from the bag."""
    beside = path.parent / name
    if beside.exists():
        return beside
    try:
        return resolve(name)
    except UsageError as error:
        raise UsageError(
            f"the bag {path} has the model {name}, which is not exported",
            f"Export it: mrsep-deploy export CHECKPOINT --name {name}",
        ) from error


def _weights(path: Path, found: object, models: int, sources: int) -> tuple[tuple[float, ...], ...]:
    if found is None:
        return ((1.0,) * sources,) * models
    rows = found if isinstance(found, list) else []
    fits = len(rows) == models and all(
        isinstance(row, list) and len(row) == sources and all(map(_is_number, row)) for row in rows
    )
    if not fits:
        raise UsageError(f"the weights of {path} are not {models} rows of {sources} numbers", _fix(path))
    if not all(sum(column) > 0 for column in zip(*rows, strict=True)):
        raise UsageError(f"the weights of {path} give a source to no model", _fix(path))
    return tuple(tuple(float(number) for number in row) for row in rows)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _fix(path: Path) -> str:
    return f"Correct {path}."


class BagSeparator:
    """Separates songs with all models of a bag, side by side through the song, in flat memory.

    Args:
        bag: what to run.
        wanted: the sources whose stems matter; models that count for none of them are left out. The other
            sources come out as zeros.
        options: of every ``Separator``; ``shifts`` and ``seed`` are drawn model by model, as Demucs does.

    Raises:
        BundleError, EngineUnavailableError, UsageError: as ``Separator``.
    """

    def __init__(
        self, bag: Bag, wanted: Collection[int], *, shifts: int = 0, seed: int = 0, **options: Any
    ) -> None:
        self.bag = bag
        source = random.Random(seed)
        rate = bag.bundles[0].manifest.model.sample_rate
        leads = [draw_leads(shifts, rate, source) for _ in bag.bundles]
        used = [n for n, row in enumerate(bag.weights) if any(row[k] for k in wanted)]
        if options.get("segment") is None:
            options["segment"] = bag.segment
        self._weights = np.array([bag.weights[n] for n in used], np.float32)
        totals = self._weights.sum(axis=0)
        self._weights /= np.where(totals > 0, totals, 1)
        with contextlib.ExitStack() as stack:
            self.separators = [stack.enter_context(Separator(bag.bundles[n], **options)) for n in used]
            self._stack = stack.pop_all()
        for separator, n in zip(self.separators, used, strict=True):
            separator.leads = leads[n]

    @property
    def first(self) -> Separator:
        """One of the models, for what they have in common."""
        return self.separators[0]

    @property
    def sample_rate(self) -> int:
        return self.first.sample_rate

    @property
    def audio_channels(self) -> int:
        return self.first.audio_channels

    def separate_songs(self, songs: Iterable[Song | None]) -> Iterator[Separated]:
        """Separate songs one after the other (see ``SongStream.run``)."""
        for song in songs:
            if song is not None:
                try:
                    for stems in self._separate(song):
                        yield Separated(song, stems)
                except Exception as error:
                    yield Separated(song, error=error)
                else:
                    yield Separated(song)

    def _separate(self, song: Song) -> Iterator[Float32]:
        copies = itertools.tee(song.blocks, len(self.separators))
        running = [
            separator.separate_measured(blocks, song.statistics)
            for separator, blocks in zip(self.separators, copies, strict=True)
        ]
        held = [BlockQueue() for _ in running]
        left = song.statistics.frames
        while left:
            for stems, queue in zip(running, held, strict=True):
                if not len(queue):
                    queue.push(next(stems))
            count = min(map(len, held))
            left -= count
            yield self._weighted([queue.take(count) for queue in held])
        for stems in running:
            next(stems, None)  # its own end

    def _weighted(self, takes: list[Float32]) -> Float32:
        total = np.zeros_like(takes[0])
        for weights, stems in zip(self._weights, takes, strict=True):
            total += weights[:, None, None] * stems
        return total

    def close(self) -> None:
        """Close every separator. Idempotent."""
        self._stack.close()

    def __enter__(self) -> BagSeparator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
