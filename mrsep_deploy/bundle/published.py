"""Published models that can be had by name: where their files are, what they hold, and on what terms.

``published.toml`` beside this module is data; nothing here opens a connection (``fetching`` does, when asked to).
A model of a family that this version cannot export is listed, too.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from mrsep_deploy.bundle.bag_file import Weights
from mrsep_deploy.bundle.licence import UNSTATED, Licence
from mrsep_deploy.errors import UsageError
from mrsep_deploy.files.reading import toml
from mrsep_deploy.files.strict_json import shown
from mrsep_deploy.files.typed_json import Name, Sha256, typed

FILE = Path(__file__).with_suffix(".toml")
CONFIG_SUFFIX = ".yaml"

_Address = Annotated[
    str, Meta(pattern=r"\Ahttps://[!-~]{1,500}\Z", description="an address that begins with https://")
]
_Positive = Annotated[float, Meta(gt=0, lt=1e9)]


class PublishedFile(Struct, frozen=True, forbid_unknown_fields=True):
    """One file: the name it gets here, where it is, its size and its hash.

    A configuration has the checkpoint's name with another suffix, which is how an export finds it.
    """

    name: Name
    address: _Address
    bytes: Annotated[int, Meta(ge=1, le=2**36)]
    sha256: Sha256


class Score(Struct, frozen=True, forbid_unknown_fields=True):
    """SDR in dB by source, on which music, and where that was published."""

    data: str
    decibels: Annotated[dict[Name, float], Meta(min_length=1)]
    source: str


class PublishedModel(Struct, frozen=True, forbid_unknown_fields=True):
    """A model, or several that separate together.

    Attributes:
        title: for people.
        families: variants of families that its checkpoints are of, by the names that an export knows them by.
        sources: its stems.
        licence: key of its licence.
        files: every checkpoint and, where it has one, its configuration.
        weights: of several models: [model][source], how much each counts; None: all the same.
        segment: seconds of a segment, where its authors ask for others than its checkpoints have.
        gflop_per_second: 1e9 floating-point operations per second of music, all its models together; None: not known.
        scores: published SDR.
    """

    title: str
    families: Annotated[tuple[Name, ...], Meta(min_length=1)]
    sources: Annotated[tuple[Name, ...], Meta(min_length=1)]
    licence: Name
    files: Annotated[tuple[PublishedFile, ...], Meta(min_length=1, max_length=64)]
    weights: Weights | None = None
    segment: _Positive | None = None
    gflop_per_second: _Positive | None = None
    scores: tuple[Score, ...] = ()

    @property
    def checkpoints(self) -> tuple[PublishedFile, ...]:
        """The files with weights; several make a bag."""
        return tuple(file for file in self.files if not file.name.endswith(CONFIG_SUFFIX))

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)


class Published(Struct, frozen=True, forbid_unknown_fields=True):
    """The file: licences by key, and models by name."""

    licences: dict[Name, Licence]
    models: dict[Name, PublishedModel]

    def licence(self, model: PublishedModel) -> Licence:
        """Of the weights of one of its models."""
        return self.licences[model.licence]


@cache
def published() -> Published:
    """Returns everything that can be fetched, in the order of the file."""
    return typed(toml(FILE.read_bytes()), Published, FILE.name, "Install mrsep-deploy again.")


def find(name: str) -> PublishedModel:
    """Returns the published model of that name. Raises ``UsageError`` that lists the names if there is none."""
    models = published().models
    if name not in models:
        close = difflib.get_close_matches(name, models, n=1)
        fix = f"Did you mean {close[0]}?" if close else "mrsep-deploy models list --all shows them."
        raise UsageError(f"no published model {shown(name)} is known (known are {', '.join(models)})", fix)
    return models[name]


def licence_of(sha256: str) -> Licence:
    """Returns the licence of a published checkpoint by its hash; that of any other file is not stated."""
    for model in published().models.values():
        if any(file.sha256 == sha256 for file in model.checkpoints):
            return published().licence(model)
    return UNSTATED
