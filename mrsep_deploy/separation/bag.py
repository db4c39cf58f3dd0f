"""Bags: several models that separate a song together, each with a weight for every source.

The file of a bag (``bundle.bag_file``) names exported models, or bundles by their path from it. In Demucs' own bags
the signatures stand for models exported under these names.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrsep_deploy.audio.blocks import BlockQueue, Float32
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.bag_file import BAG_FILE, SUFFIXES, Weights, read_bag_file
from mrsep_deploy.bundle.licence import Licence, of_all
from mrsep_deploy.bundle.registry import resolve
from mrsep_deploy.errors import DeviceLostError, FormatError, UsageError
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.separation.stream import Separated, Song, draw_leads, stems_of


@dataclass(frozen=True)
class Bag:
    """Models and how much each counts.

    Attributes:
        name: of the bag: the stem of its file, or the name of the folder that holds it and its models.
        weights: [model][source].
        segment: seconds per segment, if the bag sets it.
    """

    name: str
    bundles: tuple[Bundle, ...]
    weights: Weights
    segment: float | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        return self.bundles[0].manifest.model.sources

    @property
    def licence(self) -> Licence:
        """The licences of all models together."""
        return of_all(bundle.manifest.licence for bundle in self.bundles)

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
    try:
        found = read_bag_file(path)
    except FormatError as error:
        raise UsageError(f"the bag {path} cannot be read: {error.message}", error.fix) from error
    bundles = tuple(Bundle.open(_place(path, name), verify=verify) for name in found.models)
    first = bundles[0].manifest.model
    for name, bundle in zip(found.models, bundles, strict=True):
        model = bundle.manifest.model
        same = ("sources", "sample_rate", "audio_channels")
        if any(getattr(model, key) != getattr(first, key) for key in same):
            raise UsageError(
                f"the models {found.models[0]} and {name} of {path} differ in sources, sample rate or channels",
                "A bag is made of models that separate the same.",
            )
    sources = len(first.sources)
    weights = found.weights or ((1.0,) * sources,) * len(bundles)
    if len(weights[0]) != sources:
        raise UsageError(
            f"the weights of {path} are not {len(bundles)} rows of {sources} numbers", f"Correct {path}."
        )
    name = path.absolute().parent.name if path.name == BAG_FILE else path.stem
    return Bag(name, bundles, weights, found.segment)


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


def _require_segment(bag: Bag, bundles: Iterable[Bundle]) -> None:
    """Raises ``UsageError`` if a model takes shorter segments than the bag asks for."""
    for bundle in bundles:
        manifest = bundle.manifest
        if bag.segment is not None and not manifest.takes_segment(bag.segment):
            longest = manifest.kept_samples / manifest.model.sample_rate
            raise UsageError(
                f"the bag {bag.name} asks for segments of {bag.segment:g} s, its model {manifest.name} takes "
                f"{longest:g} s at most",
                f"Export the model with --segment {bag.segment:g}, or give --segment {longest:g} here.",
            )


class BagSeparator:
    """Separates songs with all models of a bag, side by side through the song, in flat memory.

    Args:
        wanted: the sources whose stems matter; models that count for none of them are left out. The other
            sources come out as zeros.
        options: of every ``Separator``; ``shifts`` and ``seed`` are drawn model by model, as Demucs does.

    Attributes:
        separators: of the models, in order; ``first`` stands for what they have in common.

    Raises:
        BundleError, EngineUnavailableError, UsageError: as ``Separator``.
    """

    def __init__(
        self, bag: Bag, wanted: Collection[int], *, shifts: int = 0, seed: int = 0, **options: Any
    ) -> None:
        source = random.Random(seed)
        rate = bag.bundles[0].manifest.model.sample_rate
        leads = [draw_leads(shifts, rate, source) for _ in bag.bundles]
        used = [n for n, row in enumerate(bag.weights) if any(row[k] for k in wanted)]
        if options.get("segment") is None:
            options["segment"] = bag.segment
            _require_segment(bag, [bag.bundles[n] for n in used])
        self._weights = np.array([bag.weights[n] for n in used], np.float32)
        totals = self._weights.sum(axis=0)
        self._weights /= np.where(totals > 0, totals, 1)
        with contextlib.ExitStack() as stack:
            self.separators = [stack.enter_context(Separator(bag.bundles[n], **options)) for n in used]
            self._stack = stack.pop_all()
        self.first = self.separators[0]
        self.sample_rate, self.audio_channels = self.first.sample_rate, self.first.audio_channels
        for separator, n in zip(self.separators, used, strict=True):
            separator.leads = leads[n]

    def separate_songs(self, songs: Iterable[Song | None]) -> Iterator[Separated]:
        """Separate songs one after the other (see ``SongStream.run``)."""
        for song in songs:
            if song is not None:
                try:
                    for stems in self._separate(song):
                        yield Separated(song, stems)
                except DeviceLostError:  # no song can be separated any more
                    raise
                except Exception as error:
                    yield Separated(song, error=error)
                else:
                    yield Separated(song)

    def _separate(self, song: Song) -> Iterator[Float32]:
        copies = itertools.tee(song.blocks, len(self.separators))
        songs = [Song(song.statistics, blocks) for blocks in copies]
        running = [
            stems_of(separator.separate_songs([each]))
            for separator, each in zip(self.separators, songs, strict=True)
        ]
        held = [BlockQueue() for _ in running]
        left = song.statistics.frames
        while left:
            for stems, queue in zip(running, held, strict=True):
                if not len(queue):
                    queue.push(next(stems))
            count = min(map(len, held))
            left -= count
            total, *others = (
                weights[:, None, None] * queue.take(count)
                for weights, queue in zip(self._weights, held, strict=True)
            )
            for other in others:
                total += other
            yield total
        for stems in running:
            next(stems, None)  # its own end
        song.segments = sum(each.segments for each in songs)
        song.in_float32 = sum(each.in_float32 for each in songs)

    def close(self) -> None:
        """Close every separator. Idempotent."""
        self._stack.close()

    def __enter__(self) -> BagSeparator:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
