"""Rows of ``mrsep-deploy bench`` that are wrong or doubtful: times stay and are marked, limits and plans are taken."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import SAMPLES, SOURCES, tiny_bundle
from click.testing import CliRunner, Result
from rich.console import Console

from mrsep_deploy import errors
from mrsep_deploy.bench import results as results_module
from mrsep_deploy.bench.benchmark import Settings, benchmark
from mrsep_deploy.bench.contenders import OURS, Contender
from mrsep_deploy.bench.plan import Entry
from mrsep_deploy.bench.report import print_result, profile_part, to_csv, to_json, to_markdown
from mrsep_deploy.commands import main
from mrsep_deploy.measuring.limits import WORST_STEM, Limit, Powers
from mrsep_deploy.pages.bench_page import bench_page, race_verdict
from mrsep_deploy.pages.page import render
from mrsep_deploy.precision.plan import PrecisionPlan, write_plan
from mrsep_deploy.terminal.tables import print_parts

TESTS = Path(__file__).parents[1]
LOW = {"flop_per_second": 1e12, "bytes_per_second": 1e12}
"""A machine so fast that every run takes longer than its floor."""
BUSY = {"flop_per_second": 1e2, "bytes_per_second": 1e2}
"""What a machine seems to be that is busy while its ceilings are measured: no run takes so long as its floor."""


def measured(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *labels: str,
    rates: Mapping[str, float] = LOW,
    **settings: Any,
) -> results_module.Result:
    """The tiny bundle on ``ort``, and as each of the planted contenders."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr("mrsep_deploy.bench.ceilings.cpu_ceilings", lambda _threads: rates)
    bundle = tiny_bundle(folder)
    openers = {label: OURS if label == "right" else f"bench_contenders:{label}" for label in labels}
    made = [Contender(label, opener, str(bundle.path), engine="ort") for label, opener in openers.items()]
    given = Settings(**{"rounds": 3, "timeline": False, **settings})
    return benchmark([Entry("tiny", bundle, tuple(made))], given, lambda *_: None)


def shown(found: results_module.Result) -> str:
    screen = Console(file=io.StringIO(), width=240)
    print_result(screen, found)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


# --- wrong stems


def test_a_row_below_its_limit_keeps_its_time_and_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the terminal, as Markdown, CSV, JSON and HTML; and nobody is compared with it."""
    found = measured(tmp_path, monkeypatch, "right", "Wrong", lengths=(3 * SAMPLES / 8000,))
    parity = found.rows[1].parity
    assert parity is not None
    mark = f"wrong stems: {min(parity.snr.values()):.1f} dB, limit 100"
    assert found.rows[3].reason.endswith(", of segments")
    for row in found.rows[1::2]:
        assert (row.status, len(row.seconds), row.mark) == ("failed", 3, mark)
        assert row.reason.startswith(mark)
        assert row.floor is not None
        assert row.memory["peak_bytes"]
        median = f"{1e3 * (row.median or 0.0):.3g} ms"
        for text in (shown(found), to_markdown(found), render(bench_page(found.plain()))):
            assert mark in text
            assert median in text
    wrong = list(csv.DictReader(io.StringIO(to_csv(found))))[1]
    assert float(wrong["median"]) == found.rows[1].median
    assert (wrong["status"], wrong["ratio"]) == ("failed", "")
    assert wrong["reason"].startswith("wrong stems: ")
    rows = json.loads(to_json(found), parse_constant=pytest.fail)["rows"]
    assert (rows[1]["median"], rows[1]["mark"]) == (found.rows[1].median, found.rows[1].mark)
    assert [row["ratios"] for row in rows] == [{}, {}, {}, {}]
    for race in found.races:
        assert race.baseline == "right"


@pytest.mark.parametrize("labels", [("Wrong", "right"), ("NotFinite", "right")])
def test_a_wrong_row_wins_nothing_however_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: tuple[str, str]
) -> None:
    """Nor is it the baseline, nor the reference of a song."""
    found = measured(tmp_path, monkeypatch, "right", labels[0], lengths=(3 * SAMPLES / 8000,))
    found.rows[1].seconds = [1e-9] * 3
    verdict = race_verdict(found.plain(), found.plain()["races"][0])
    assert verdict.headline.startswith("right: ")
    assert any(text.startswith(f"{labels[0]} failed: wrong stems: ") for text in verdict.details)


def test_where_every_row_is_wrong_the_times_are_there_and_nobody_won(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(tmp_path, monkeypatch, "NotFinite")
    page = render(bench_page(found.plain()))
    assert "Nobody won: no row has right stems." in page
    assert f"{1e3 * (found.rows[0].median or 0.0):.3g} ms" in page
    assert "wrong stems: no finite numbers" in page
    assert found.races[0].baseline == ""


def test_the_worst_stem_is_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the worst of those that do not pass by the mix: such a stem stands in a line of its own."""
    found = measured(tmp_path, monkeypatch, "right")
    parity = found.rows[0].parity
    assert parity is not None
    loud, quiet = SOURCES[:2]
    # the mix at 0 dBFS, errors of 102.6 and 140 dB below that
    limit, error, inaudible = Limit(100.0, ""), 10**-10.26, 1e-14
    judgements = {loud: Powers(1.0, error, 1.0), quiet: Powers(10**9.38 * inaudible, inaudible, 1.0)}
    found.rows[0].parity = replace(
        parity, judgements={name: limit.judge(powers) for name, powers in judgements.items()}
    )
    assert found.rows[0].parity.worst == loud
    page = render(bench_page(found.plain()))
    for text in (shown(found), to_markdown(found), page.split("All figures</h3>")[1].split("</figure>")[0]):
        assert f"102.6 dB, {loud}" in text
        assert f"93.8 dB, {quiet}" not in text
    said = f"{quiet} of right passes by the mix: its error is 140.0 dB below that, its SNR 93.8 dB."
    assert said in shown(found)
    assert said in to_markdown(found)
    assert f"SNR: {WORST_STEM}, in dB" in shown(found)
    (line,) = csv.DictReader(io.StringIO(to_csv(found)))
    assert line["worst_snr_db"] == "102.6"


# --- limits and plans


def run(*arguments: str) -> Result:
    runner = CliRunner(env={"COLUMNS": "240"})
    return runner.invoke(main.main, ["bench", *arguments], prog_name=main.PROGRAM)


def test_another_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is below 100 dB passes, and so does what is wrong in every way, if that is asked for."""
    found = measured(tmp_path, monkeypatch, "right", "Wrong", limit=-500.0)
    assert [row.status for row in found.rows] == ["ok", "ok"]
    assert found.plain()["settings"]["limit"] == -500.0
    found = measured(tmp_path / "b", monkeypatch, "right", "Wrong", limit=80.0)
    assert found.rows[1].mark.endswith("dB, limit 80")


def test_the_option_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrsep_deploy.bench.ceilings.cpu_ceilings", lambda _threads: LOW)
    bundle, target = tiny_bundle(tmp_path), tmp_path / "b.json"
    given = (str(bundle.path), "--engine", "ort", "--against", "none", "--rounds", "1", "--json", str(target))
    assert run(*given, "--precision", "fp32,bf16", "--limit", "70").exit_code == errors.PARTIAL
    rows = json.loads(target.read_text())["rows"]
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert rows[1]["mark"].endswith("dB, limit 70")
    assert run(*given, "--precision", "fp32,bf16").exit_code == errors.DONE
    assert run(*given, "--limit", "nan").exit_code == errors.USAGE


def test_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrsep_deploy.bench.ceilings.cpu_ceilings", lambda _threads: LOW)
    bundle, target, file = tiny_bundle(tmp_path), tmp_path / "b.json", tmp_path / "plan.json"
    write_plan(PrecisionPlan("float16", (), {"branch.16": ("Add*",)}), file)
    given = (str(bundle.path), "--engine", "ort", "--against", "none", "--rounds", "1", "--json", str(target))
    done = run(*given, "--precision", "fp16,mixed", "--plan", str(file))
    assert done.exit_code == errors.DONE, done.output
    rows = json.loads(target.read_text())["rows"]
    assert [(row["label"], row["precision"]) for row in rows] == [
        ("ort fp16", "fp16"),
        ("ort mixed", "mixed"),
    ]
    assert all(row["floor"] is not None for row in rows)
    profiled = run(*given, "--precision", "mixed", "--plan", str(file), "--profile")
    assert profiled.exit_code == errors.DONE, profiled.output


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (("--plan", "plan.json"), "a plan was given with no --precision"),
        (("--precision", "fp16,bf16", "--plan", "plan.json"), "a plan was given with --precision fp16,bf16"),
        (("--precision", "mixed"), "was given without a plan"),
        (("--precision", "mixed", "--plan", "absent.json"), "absent.json"),
    ],
)
def test_plans_that_do_not_fit(tmp_path: Path, given: tuple[str, ...], complaint: str) -> None:
    write_plan(PrecisionPlan("float16", (), {}), tmp_path / "plan.json")
    bundle = tiny_bundle(tmp_path)
    files = [str(tmp_path / word) if word.endswith(".json") else word for word in given]
    found = run(str(bundle.path), "--engine", "ort", "--against", "none", *files)
    assert found.exit_code == errors.USAGE, found.output
    assert complaint in found.stderr


# --- noise


def test_a_busy_machine_is_said_in_the_same_words_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(tmp_path, monkeypatch, "right")
    noise = found.races[0].noise
    assert noise is not None
    remarks = ("the load average was 10.01 before the start",)
    found.races[0].noise = replace(noise, load_before=10.01, remarks=remarks)
    found.machine = {**found.machine, "cores": 2}
    for text in (shown(found), to_markdown(found), render(bench_page(found.plain()))):
        assert "The machine was busy (load 10 on 2 cores): treat these times as rough" in text
        assert remarks[0] in text


# --- floors


def test_nothing_is_faster_than_its_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio below 1 tells of the floor: it is said, and no ratio is shown, nowhere."""
    found = measured(tmp_path, monkeypatch, "right", rates=BUSY)
    (row,) = found.rows
    assert row.floor is not None
    assert row.median is not None
    assert row.median < row.floor["floor"]
    page = render(bench_page(found.plain()))
    for text in (shown(found), to_markdown(found), page):
        assert "floor was measured too high" in text
        assert not re.search(r"× floor(?! of right)", text.split("All figures")[-1].split("above 1 is")[0])
    (line,) = csv.DictReader(io.StringIO(to_csv(found)))
    assert line["times_floor"] == ""
    (there,) = found.plain()["rows"]
    assert there["floor"]["times"] is None
    assert "measured too high" in there["floor"]["reason"]


def test_a_floor_that_holds_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(tmp_path, monkeypatch, "right")
    for text in (shown(found), to_markdown(found), render(bench_page(found.plain()))):
        assert "measured too high" not in text
        assert "× floor" in text


def test_a_profile_s_floors_too() -> None:
    """The stage that is faster than its floor has no ratio, and the profile says why."""
    stage: dict[str, Any] = {
        "name": "fusion", "seconds": 0.001, "share": 0.5, "macs": 5, "bytes": 9, "operators": [],
        "floor": {"floor": 0.002, "arithmetic": 0.002, "memory": 0.001}, "times": 0.5,
    }  # fmt: skip
    slow = {**copy.deepcopy(stage), "name": "bottleneck", "seconds": 0.004, "times": 2.0}
    found: dict[str, Any] = {
        "model": "m", "label": "ort", "status": "ok", "stages": [stage, slow], "operators": [], "seconds": 0.005,
        "batch": 1, "runs": 3, "outside_stages": 0.0,
    }  # fmt: skip
    rows = profile_part(found).tables[0].rows
    assert [row[6] for row in rows] == ["–", "2.0"]
    screen = Console(file=io.StringIO(), width=240)
    print_parts(screen, [profile_part(found)])
    assert isinstance(screen.file, io.StringIO)
    assert "× floor of fusion: the floor was measured too high" in screen.file.getvalue()
