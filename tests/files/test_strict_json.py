"""Strict JSON: what it refuses, how it names the place of an error, and which error it is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import pytest
from msgspec import Meta

from mrsep_deploy.errors import BundleError, FormatError, UsageError
from mrsep_deploy.files.strict_json import MAX_DEPTH, dumped, parse, plain, raised_as, written
from mrsep_deploy.files.typed_json import document, exactly, typed


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: Annotated[int, Meta(ge=1, le=8)]
    kind: Literal["a", "b"] = "a"
    name: Annotated[str, Meta(pattern=r"^[a-z]+\Z")] = "x"


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    gains: Mapping[str, float]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a": 1, "a": 2}',
        "[NaN]",
        "[1e999]",
        "[" + "1" * 50 + "]",
        '["\\ud800"]',
        "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2),
        "[" * 100_000,
    ],
)
def test_what_other_parsers_let_pass_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="thing") as caught:
        parse(text, "thing", "Mend it.")
    assert caught.value.fix == "Mend it."


def test_a_tree_becomes_an_object_of_its_type() -> None:
    tree = {"parts": [{"size": 3}, {"size": 8, "kind": "b"}], "gains": {"x": 1, "y": 0.5}}
    assert typed(tree, Whole, "thing", "") == Whole((Part(3), Part(8, "b")), {"x": 1.0, "y": 0.5})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (3, "thing is 3, expected an object"),
        ({"parts": []}, "thing has no field 'gains'"),
        (
            {"parts": [{"size": 9}], "gains": {}},
            "thing.parts[0].size is 9, expected a whole number from 1 to 8",
        ),
        (
            {"parts": [{"size": True}], "gains": {}},
            "thing.parts[0].size is True, expected a whole number from 1 to 8",
        ),
        (
            {"parts": [{"size": "1"}], "gains": {}},
            "thing.parts[0].size is '1', expected a whole number from 1 to 8",
        ),
        (
            {"parts": [{"size": 1, "z": 1}], "gains": {}},
            "thing.parts[0] has an unknown field 'z', expected size, kind, name",
        ),
        (
            {"parts": [{"size": 1}, {"size": 1, "kind": "c"}], "gains": {}},
            "thing.parts[1].kind is 'c', expected one of a, b",
        ),
        ({"parts": [], "gains": {"x": 1, "y": "2", "z": 3}}, "thing.gains['y'] is '2', expected a number"),
        (
            {"parts": [{"size": 1, "name": "A"}], "gains": {}},
            r"thing.parts[0].name is 'A', expected text matching regex '^[a-z]+\\Z'",
        ),
    ],
)
def test_what_does_not_fit_is_named(tree: object, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        typed(tree, Whole, "thing", "Mend it.")
    assert caught.value.message == message
    assert caught.value.fix == "Mend it."


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"parts": [], "gains": {}, "z\x1b": 1},
            r"thing has an unknown field 'z\x1b', expected parts, gains",
        ),
        ({"parts": [{"size": 1, "kind": "a"}], "gains": {}}, "thing.parts[0] has no field 'name'"),
    ],
)
def test_objects_have_the_fields_of_their_dataclass_and_no_other(tree: object, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        exactly(tree, Whole, "thing", "")
    assert caught.value.message == message


def test_fields_may_be_optional() -> None:
    tree = {"parts": [{"size": 1}], "gains": {}}
    assert exactly(tree, Whole, "thing", "", optional=("kind", "name")) == Whole((Part(1),), {})


def test_a_file_comes_back_with_its_header_alone() -> None:
    header = {"format": "thing", "format_version": 1}
    whole = Whole((Part(1),), {"x": 0.5})
    assert document(written(header, whole), header, Whole, "thing", "") == whole
    for version in (2, True, 1.0):
        data = written({**header, "format_version": version}, whole)
        with pytest.raises(FormatError, match=f"^thing.format_version is {version}, expected 1$"):
            document(data, header, Whole, "thing", "")


@pytest.mark.parametrize("error", [BundleError, UsageError])
def test_a_reader_raises_its_own_error(error: type[BundleError | UsageError]) -> None:
    with pytest.raises(error, match=r"thing is not valid JSON.*Mend it\."), raised_as(error):
        parse("{", "thing", "Mend it.")


def test_plain_values_of_what_json_cannot_hold() -> None:
    found = plain(
        {
            "part": Part(3),
            "whole": Whole((), {"x": math.inf, "y": -math.inf, "z": 0.5}),
            "numbers": (np.float64(math.nan), np.float32(0.5), np.int64(3), None, True),
            "path": Path("a") / "b",
            "seconds": Fraction(39, 5),
        }
    )
    assert found == {
        "part": {"size": 3, "kind": "a", "name": "x"},
        "whole": {"parts": [], "gains": {"x": None, "y": None, "z": 0.5}},
        "numbers": [None, 0.5, 3, None, True],
        "path": str(Path("a") / "b"),
        "seconds": "39/5",
    }
    assert json.loads(dumped(found)) == found
    with pytest.raises(TypeError, match="JSON cannot hold"):
        plain({"a": object()})


def test_names_that_are_no_text_can_be_written() -> None:
    assert json.loads(dumped({"name": "a\udcff"}).encode()) == {"name": "a\udcff"}
