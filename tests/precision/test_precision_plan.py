"""Plans as files: what is written comes back, and what is wrong is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import tiny_manifest

from mrsep_deploy.errors import UsageError
from mrsep_deploy.precision.plan import (
    GENERAL,
    PrecisionPlan,
    check_plan,
    default_plan,
    matching_nodes,
    read_plan,
    write_plan,
)

PLAN = PrecisionPlan(
    "bfloat16", ("norms", "fold"), {"decoder.4096": ("decoder.3/*", "Käse [1]"), "whole": ()}
)


@pytest.mark.parametrize(
    "plan", [PLAN, default_plan("float16", ()), default_plan("bfloat16", ()), PrecisionPlan("float16", ())]
)
def test_a_plan_survives_its_file(tmp_path: Path, plan: PrecisionPlan) -> None:
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    assert "\n" in (tmp_path / "plan.json").read_text().strip()


def test_the_default_has_every_rule_and_keeps_nothing_else() -> None:
    assert default_plan("float16", ()).rules == GENERAL
    # a family may name a general rule, where it expects it to match
    assert default_plan("bfloat16", ("norms", "fold")).rules == (*GENERAL, "fold")
    assert not default_plan("float16", ()).keep


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "float8"}, "precision is 'float8', expected one of float16, bfloat16"),
        ({"precision": None}, "precision is None, expected one of float16, bfloat16"),
        ({"rules": ["norms", "norms"]}, "expected names that differ"),
        ({"rules": "norms"}, "rules is 'norms', expected a list"),
        ({"keep": ["a"]}, "keep is ['a'], expected an object"),
        ({"keep": {"a": "b"}}, "keep['a'] is 'b', expected a list"),
        ({"keep": {"a": [1]}}, "keep['a'][0] is 1, expected a name or a pattern of up to 512"),
        ({"keep": {"a": [""]}}, "keep['a'][0] is '', expected a name or a pattern of up to 512"),
        ({"keep": {"a": ["x" * 513]}}, "expected a name or a pattern of up to 512"),
        ({"keep": {str(i): [] for i in range(65)}}, "keep has 65 entries, expected 0 to 64"),
        ({"keep": {"a": ["b"] * 4097}}, "keep['a'] has 4097 entries, expected 0 to 4096"),
        ({"rules": ["../x"]}, "rules[0] is '../x', expected up to 128 of"),
        (
            {"format": "mrsep-deploy bundle"},
            "format is 'mrsep-deploy bundle', expected 'mrsep-deploy pre",
        ),
        ({"format_version": 2}, "format_version is 2, expected 1"),
        ({"extra": 1}, "has an unknown field 'extra'"),
    ],
)
def test_a_plan_that_is_none(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**PLAN.to_json(), **changes}))
    with pytest.raises(UsageError) as caught:
        read_plan(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"the plan {path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"[]", "expected an object"),
        (b'{"a": 1, "a": 2}', "appears twice"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"precision": NaN}', "NaN is not a number"),
    ],
)
def test_a_file_that_is_no_plan(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_plan(path)
    assert caught.value.fix == "A plan is what `verify --bisect` writes."


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_plan(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_plan(tmp_path)


def test_nodes_by_name_and_by_pattern() -> None:
    nodes = ("a/Conv", "a/Add", "b/Conv", "c[0]/Mul")
    plan = PrecisionPlan("float16", (), {"stage": ("a/*", "c[0]/Mul")})
    assert matching_nodes(plan, "stage", nodes) == {"a/Conv", "a/Add", "c[0]/Mul"}
    assert not matching_nodes(plan, "other", nodes)


@pytest.mark.parametrize("pattern", ["d/Conv", "*/Softmax", "A/CONV"])
def test_a_pattern_without_a_node(pattern: str) -> None:
    plan = PrecisionPlan("float16", (), {"stage": (pattern,)})
    with pytest.raises(
        UsageError, match=r"of stage stage, which matches none of its 1 nodes\. Names are like a/Conv"
    ):
        matching_nodes(plan, "stage", ("a/Conv",))


def test_stages_and_rules_that_a_bundle_does_not_have() -> None:
    manifest = replace(tiny_manifest(), float32={"fold": {"branch.16": ("a/*",)}})
    plan = PrecisionPlan("float16", ("norms", "fold"), {"branch.16": ("Add*",)})
    check_plan(plan, manifest)
    with pytest.raises(
        UsageError, match=r"a stage 'whole', this bundle has the graphs branch\.16, branch\.time"
    ):
        check_plan(replace(plan, keep={"whole": ()}), manifest)
    with pytest.raises(
        UsageError,
        match=r"a rule 'magic', this bundle has the rules norms, .*chains, fold\. Correct the rule",
    ):
        check_plan(replace(plan, rules=("norms", "magic")), manifest)
