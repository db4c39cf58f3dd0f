"""The list of published models: complete, consistent, and what Demucs' own package says."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

import pytest

from mrsep_deploy.bundle import registry
from mrsep_deploy.bundle.bag_file import read_bag_file
from mrsep_deploy.bundle.licence import UNSTATED
from mrsep_deploy.bundle.published import CONFIG_SUFFIX, find, licence_of, published
from mrsep_deploy.errors import UsageError

MODELS = published().models
OF_DEMUCS = [name for name, model in MODELS.items() if model.licence == "demucs"]
PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.parametrize("name", MODELS)
def test_an_entry_fits_together(name: str) -> None:
    model = MODELS[name]
    assert registry.validate_name(name) == name
    assert model.licence in published().licences
    assert len({file.name for file in model.files}) == len(model.files)
    stems = {Path(file.name).stem for file in model.checkpoints}
    for file in model.files:
        if file.name.endswith(CONFIG_SUFFIX):
            assert Path(file.name).stem in stems, "an export finds a configuration by its checkpoint's name"
    if model.weights is not None:
        assert [len(row) for row in model.weights] == [len(model.sources)] * len(model.checkpoints)
    for score in model.scores:
        assert set(score.decibels) <= {source.lower() for source in model.sources}
        assert score.source.startswith("https://")
    assert published().licence(model) == licence_of(model.checkpoints[0].sha256)


def test_every_licence_is_some_model_s() -> None:
    assert {model.licence for model in MODELS.values()} == set(published().licences)
    assert licence_of(hashlib.sha256(b"of somebody").hexdigest()) == UNSTATED


@pytest.mark.parametrize("name", OF_DEMUCS)
def test_demucs_says_the_same(name: str) -> None:
    """Files, the beginnings of their hashes, members, weights and segments, as the package of Demucs has them."""
    spec = importlib.util.find_spec("demucs")
    if spec is None or spec.origin is None:
        pytest.skip("no demucs")
    remote = Path(spec.origin).parent / "remote"
    addresses, root = {}, ""
    for line in (remote / "files.txt").read_text().splitlines():
        if line.startswith("root:"):
            root = line.partition(":")[2].strip()
        elif not line.startswith("#"):
            addresses[line.partition("-")[0]] = f"https://dl.fbaipublicfiles.com/demucs/{root}{line.strip()}"
    bag, model = read_bag_file(remote / f"{name}.yaml"), MODELS[name]
    assert [file.address for file in model.files] == [addresses[signature] for signature in bag.models]
    for file in model.files:
        found = re.fullmatch(r"[0-9a-f]{8}-([0-9a-f]{8})\.th", file.name)
        assert found is not None
        assert file.sha256.startswith(found[1])
    assert (model.weights, model.segment) == (bag.weights, bag.segment)


def test_names_that_are_not_there() -> None:
    with pytest.raises(UsageError, match=r"no published model 'htdemuks' is known .*Did you mean htdemucs\?"):
        find("htdemuks")
    with pytest.raises(UsageError, match=r"models list --all shows them"):
        find("x")


@pytest.mark.parametrize("name", MODELS)
def test_the_page_that_helps_to_choose_has_every_model(name: str) -> None:
    """A row with its stems, licence, size, cost and scores, as in the list."""
    model, licence = MODELS[name], published().licence(MODELS[name])
    (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    _, _, stems, terms, commercial, size, cost, scores, _ = [cell.strip() for cell in row.split("|")]
    assert stems == ", ".join(model.sources)
    assert terms == licence.brief
    assert commercial == ("yes" if licence.commercial else "no")
    assert size == f"{model.bytes / 1e6:.0f} MB"
    assert cost == ("–" if model.gflop_per_second is None else f"{model.gflop_per_second:.0f}")
    assert scores == (
        ", ".join(f"{source} {value:.2f}" for source, value in model.scores[0].decibels.items())
        if model.scores
        else "–"
    )
