"""Licences of weights: what authors state, what it means for commercial use, and how it stands in a manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import tiny_files, tiny_manifest

from mrsep_deploy.bundle import Bundle, shipped, write_bundle
from mrsep_deploy.bundle.licence import UNSTATED, Licence, of_all, require_commercial, stated
from mrsep_deploy.bundle.manifest_json import from_json, to_json
from mrsep_deploy.errors import BundleError, UsageError

WORDS = "The weights are for research only"


@pytest.mark.parametrize(
    ("terms", "name", "commercial"),
    [
        ("MIT", "MIT", True),
        (" mit ", "MIT", True),
        ("apache-2.0", "Apache-2.0", True),
        ("gpl-3.0", "GPL-3.0", True),
        ("CC-BY-NC-4.0", "CC-BY-NC-4.0", False),
        ("cc-by-nc-sa-4.0", "CC-BY-NC-SA-4.0", False),
        (WORDS, WORDS, False),
        ("not stated", "not stated", False),
    ],
)
def test_what_a_name_means(terms: str, name: str, commercial: bool) -> None:
    assert stated(terms, "a page") == Licence(name, "a page", commercial)


def test_words_that_allow_commercial_use_are_believed() -> None:
    assert stated("bought from the author", commercial=True).commercial
    for terms in ("CC-BY-NC-4.0", "not stated"):
        with pytest.raises(UsageError, match="does not allow commercial use"):
            stated(terms, commercial=True)


@pytest.mark.parametrize("terms", ["", " ", "two\nlines", "\x1b[2J", "turned \u202e around", "x" * 501])
def test_text_that_is_no_line(terms: str) -> None:
    with pytest.raises(UsageError, match="expected text of up to 500 characters in one line"):
        stated(terms)


@pytest.mark.parametrize("terms", ["", "two\nlines", "\x1b[2J", "turned \u202e around", "x" * 501])
def test_a_manifest_with_such_text_is_refused(terms: str) -> None:
    for field in ("terms", "source") if terms else ("terms",):
        tree = json.loads(to_json(tiny_manifest()))
        tree["licence"][field] = terms
        with pytest.raises(BundleError, match=f"manifest.licence.{field} is .* expected text of up to 500"):
            from_json(json.dumps(tree))


def test_every_licence_survives_a_manifest() -> None:
    for licence in (
        UNSTATED,
        stated("MIT", "LICENSE"),
        stated("Für Forschung – “nur”", "https://example.org/é"),
    ):
        manifest = replace(tiny_manifest(), licence=licence)
        assert from_json(to_json(manifest)) == manifest


def test_a_bundle_from_before_licences_states_none(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "old", tiny_manifest(), tiny_files(tiny_manifest()), overwrite=False)
    tree = json.loads(bundle.manifest_bytes)
    del tree["licence"]
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(tree))
    assert Bundle.open(tmp_path / "old").manifest.licence == UNSTATED


def test_how_it_is_told() -> None:
    assert UNSTATED.title == "licence not stated"
    assert stated("MIT").title == "licence MIT"
    assert stated(WORDS).title == f'licence "{WORDS}"'
    assert str(UNSTATED) == "not stated, so that commercial use counts as not allowed"
    assert str(stated("MIT", "LICENSE")) == "MIT; commercial use allowed (LICENSE)"
    assert str(stated(WORDS)) == f"{WORDS}; commercial use not allowed"
    assert [stated(WORDS).brief, stated("mit").brief] == ["author's words", "MIT"]


def test_models_together_allow_what_all_allow() -> None:
    mit, apache, research = stated("MIT", "a"), stated("Apache-2.0", "b"), stated(WORDS, "a")
    assert of_all([mit, mit]) == mit
    assert of_all([mit, apache]) == Licence("MIT and Apache-2.0", "a, b", True)
    assert of_all([mit, research, UNSTATED]) == Licence(f"MIT and {WORDS} and not stated", "a", False)


def test_commercial_use_has_to_be_known_to_be_allowed() -> None:
    require_commercial("mine", stated("MIT"))
    for licence in (UNSTATED, stated(WORDS), stated("CC-BY-NC-4.0")):
        with pytest.raises(UsageError, match="mine is not known to allow commercial use"):
            require_commercial("mine", licence)


def test_the_shipped_model_states_its_own() -> None:
    found = Bundle.open(shipped.BUNDLE, verify=False).manifest.licence
    assert (found.terms, found.commercial) == ("MIT", True)
    assert (shipped.BUNDLE.parent / Path(found.source).name).read_text().count("MIT") > 0
