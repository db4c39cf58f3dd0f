"""``mrsep-deploy bench``: its rows and files, contenders that go wrong, interruption. Speed is never asserted."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small_package
from bundles import SAMPLES, SOURCES, tiny_bundle
from click.testing import CliRunner, Result
from goldens import Export, checkpoint

from mrsep_deploy import errors
from mrsep_deploy.bench import results as results_module
from mrsep_deploy.bench.benchmark import Settings, benchmark
from mrsep_deploy.bench.contenders import AGAINST, OURS, PEERS, Contender
from mrsep_deploy.bench.plan import Entry, Request, plan
from mrsep_deploy.bench.report import to_csv, to_json, to_markdown
from mrsep_deploy.bench.results import Row
from mrsep_deploy.bundle import Bundle, registry, shipped
from mrsep_deploy.commands import bench as command
from mrsep_deploy.commands import main
from mrsep_deploy.commands import output_files as kinds
from mrsep_deploy.runtime.schedule import MODES

TESTS = Path(__file__).parents[1]
STAGES = 7
"""Of the tiny bundle."""


def run(*arguments: str) -> Result:
    # wide: on a slow machine times have more digits, and a narrow table folds its labels
    runner = CliRunner(env={"COLUMNS": "200"})
    return runner.invoke(main.main, ["bench", *arguments], prog_name=main.PROGRAM)


def silent(_what: str, _done: int, _total: int) -> None:
    pass


def raced(folder: Path, made: Sequence[Contender], **settings: Any) -> results_module.Result:
    """The tiny bundle, run by these."""
    entry = Entry("tiny", tiny_bundle(folder), tuple(made))
    return benchmark([entry], Settings(**{"rounds": 3, "timeline": False, **settings}), silent)


def ours(folder: Path, label: str, opener: str = OURS, **more: Any) -> Contender:
    return Contender(label, opener, str(folder / "tiny"), engine="ort", **more)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> str:
    """Lets measuring processes import the contenders of the tests; what their openers begin with."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    return "bench_contenders:"


@pytest.fixture(autouse=True)
def ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the machine takes seconds; one test does it for all."""
    given = {"flop_per_second": 1e11, "bytes_per_second": 1e10}
    monkeypatch.setattr("mrsep_deploy.bench.ceilings.cpu_ceilings", lambda _threads: given)


# --- the command


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One run of the command with all its files."""
    folder = tmp_path_factory.mktemp("bench")
    tiny_bundle(folder)
    found = run(
        *(
            str(folder / "tiny"),
            "--engine",
            "ort,openvino",
            "--mode",
            "sequential,concurrent",
            "--against",
            "none",
        ),
        *("--rounds", "4", "--length", "0.05", "--threads", "2"),
        *(
            "--json",
            str(folder / "b.json"),
            "--csv",
            str(folder / "b.csv"),
            "--markdown",
            str(folder / "b.md"),
        ),
    )
    return found, folder


def test_the_files_are_known_as_earlier_ones(measured: tuple[Result, Path]) -> None:
    """A second run replaces them without being told to."""
    _, folder = measured
    marks = {"b.json": kinds.BENCH_JSON, "b.csv": kinds.BENCH_CSV, "b.md": kinds.BENCH_MARKDOWN}
    for name, mark in marks.items():
        assert mark.match((folder / name).read_bytes()), name


def test_rows_of_a_run(measured: tuple[Result, Path]) -> None:
    found, folder = measured
    assert found.exit_code == errors.DONE, found.output
    plain = json.loads((folder / "b.json").read_text(), parse_constant=pytest.fail)
    assert (plain["format"], plain["interrupted"]) == ("mrsep-deploy bench", False)
    labels = ["ort", "ort concurrent", "openvino", "openvino concurrent"]
    assert [(row["workload"], row["label"]) for row in plain["rows"]] == [
        (workload, label) for workload in ("segments", "0.05 s song") for label in labels
    ]
    for row in plain["rows"]:
        assert row["status"] == "ok"
        assert len(row["seconds"]) == 4
        assert min(row["seconds"]) == row["min"] <= row["p25"] <= row["median"] <= row["p75"] <= row["max"]
        assert row["realtime"] == pytest.approx(row["audio_seconds"] / row["median"])
        assert (row["p95"], row["p99"]) == (None, None)
        assert "p95 needs 20" in row["tails"]
        assert row["start_up"]["cold"]["total"] >= row["start_up"]["cold"]["load"] > 0
        assert row["start_up"]["warm"]["import"] > 0
        assert row["parity"]["passes"]
        assert set(row["parity"]["snr_db"]) == set(SOURCES)
        assert set(row["ratios"]) == set(labels) - {row["label"]}
        assert row["floor"]["times"] == pytest.approx(row["median"] / row["floor"]["floor"])
    assert plain["rows"][0]["batch"] == 1
    assert plain["rows"][0]["audio_seconds"] == SAMPLES / 8000
    assert plain["rows"][4]["audio_seconds"] == pytest.approx(0.05)


def test_what_was_measured_on_is_in_the_file(measured: tuple[Result, Path]) -> None:
    plain = json.loads((measured[1] / "b.json").read_text())
    assert plain["machine"]["versions"]["onnxruntime"]
    assert plain["machine"]["commit"]
    assert plain["settings"]["threads"] == 2
    assert plain["ceilings"]["cpu"]["flop_per_second"]["fp32"] > 0
    assert plain["ceilings"]["cpu"]["bytes_per_second"] > 0
    model = plain["models"]["tiny"]
    assert (model["family"], model["sources"], model["batch"]) == ("HTDemucs", list(SOURCES), 1)
    for race in plain["races"]:
        assert race["baseline"] == "ort"
        assert race["no_exact_reference"].startswith("the checkpoint is not where it was")
        assert race["rounds"] == 4
        assert {"others_cores", "steal_share", "drift", "remarks", "quiet"} <= set(race["noise"])


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of a process as Linux tells it")
def test_memory_is_that_of_one_process(measured: tuple[Result, Path]) -> None:
    for row in json.loads((measured[1] / "b.json").read_text())["rows"]:
        assert 20 * 2**20 < row["memory"]["loaded_bytes"] <= row["memory"]["peak_bytes"] < 2 * 2**30


def test_timelines_show_every_stage(measured: tuple[Result, Path]) -> None:
    rows = json.loads((measured[1] / "b.json").read_text())["rows"]
    for row in rows[:4]:
        timeline = row["timeline"]
        assert len({event["stage"] for event in timeline["events"]}) == STAGES
        assert len({event["segment"] for event in timeline["events"]}) == 4
        assert min(event["start"] for event in timeline["events"]) == 0
        assert set(timeline["shares"]) == {event["stage"] for event in timeline["events"]}
        assert 0 <= timeline["outside_stages"] <= 1
    assert len({event["stream"] for event in rows[0]["timeline"]["events"]}) == 1
    assert len({event["stream"] for event in rows[1]["timeline"]["events"]}) > 1


def test_energy_is_there_or_said_not_to_be(measured: tuple[Result, Path]) -> None:
    for row in json.loads((measured[1] / "b.json").read_text())["rows"]:
        energy = row["energy"]["cpu"]
        assert bool(energy["reason"]) == (energy["median"] is None)
        assert len(energy["joules"]) == (0 if energy["reason"] else len(row["seconds"]))


def test_tables(measured: tuple[Result, Path]) -> None:
    found, folder = measured
    lines = list(csv.DictReader(io.StringIO((folder / "b.csv").read_text())))
    plain = json.loads((folder / "b.json").read_text())
    assert [line["label"] for line in lines] == [row["label"] for row in plain["rows"]]
    assert [float(line["median"]) for line in lines] == [row["median"] for row in plain["rows"]]
    low, middle, high = (float(lines[1][name]) for name in ("ratio_low", "ratio", "ratio_high"))
    assert low <= middle <= high
    page = (folder / "b.md").read_text()
    for text in ("| ort concurrent |", "## tiny: 0.05 s song", "p99 needs 100", "baseline ort"):
        assert text in page
    for text in (
        "openvino concurrent",
        "× realtime",
        "baseline ort",
        "compared with those of ort, not with PyTorch",
    ):
        assert text in found.stdout


def test_what_the_command_offers_is_what_there_is() -> None:
    assert tuple(AGAINST) == command.AGAINST
    assert tuple(PEERS) == command.PEERS
    assert command.MODES == MODES


def test_every_key_of_the_file_is_documented(measured: tuple[Result, Path]) -> None:
    plain = json.loads((measured[1] / "b.json").read_text())
    text = str(results_module.__doc__)
    for key in {*plain, *plain["machine"], *plain["races"][0], *plain["rows"][0], *plain["models"]["tiny"]} - {
        "format", "version"
    }:  # fmt: skip
        assert key in text, key


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--engine", "best"], "'best' is none of"),
        (["--against", "torch,none"], "exclude each other"),
        (["--length", "ten"], "no list of seconds"),
        (["--length", "-1"], "above 0"),
        (["--batch", "0"], "no list of whole numbers"),
        (["--batch", "2,2"], "named twice"),
        (["--batch", "100000"], "a batch of 100000 segments was asked for"),
        (["--lanes", "1,none"], "no list of whole numbers"),
        (["--lanes", "2,2"], "named twice"),
        (["--rounds", "0"], "0 is not in the range"),
        (["--engine", "ort,ort", "--against", "none"], "named twice"),
        (["--profile", "--engine", "trt"], "cannot be profiled, only ort and openvino"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    found = run(str(tiny_bundle(tmp_path).path), *arguments)
    assert found.exit_code == errors.USAGE
    assert complaint in found.stderr
    assert "Traceback" not in found.output


def test_without_any_model_it_is_the_one_that_comes_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path))
    (entry,) = plan(Request(engines=("ort",)), tmp_path)
    assert (entry.key, entry.bundle.path) == (shipped.NAME, shipped.BUNDLE)
    assert [made.label for made in entry.contenders] == ["torch", "ort"]


def test_music_that_is_none(tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    song.write_bytes(b"RIFF no audio")
    found = run(str(tiny_bundle(tmp_path).path), "--against", "none", "--engine", "ort", "--audio", str(song))
    assert found.exit_code == errors.FAILED
    assert "song.wav" in found.stderr
    assert found.stderr.count("error:") == 1


# --- who takes part


def test_the_model_exported_last_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    registry.register(tiny_bundle(tmp_path))
    for models in ((), ("tiny",)):
        entries = plan(Request(models, ("ort",), against=()), tmp_path)
        assert [(e.key, [c.label for c in e.contenders]) for e in entries] == [("tiny", ["ort"])]


def test_bundles_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, other = (str(tiny_bundle(tmp_path / place).path) for place in ("a", "b"))
    entries = plan(Request((one, other), ("ort",), against=(), batches=(1, 2)), tmp_path)
    assert [e.key for e in entries] == [
        "tiny (split, batch 1, float32)",
        "tiny (split, batch 2, float32)",
        "tiny 2",
        "tiny 3",
    ]


def test_segments_side_by_side(tmp_path: Path) -> None:
    """The same stems, and a row of their own."""
    bundle = str(tiny_bundle(tmp_path).path)
    request = Request([bundle], ["ort"], lanes=(1, 2), against=(), threads=2)
    seconds = 9 * SAMPLES / 8000
    found = benchmark(plan(request, tmp_path), Settings(2, lengths=(seconds,), timeline=False), silent)
    assert [(row.label, row.status) for row in found.races[1].rows] == [("ort", "ok"), ("ort 2 lanes", "ok")]
    both = [row for row in json.loads(to_json(found))["rows"] if row["workload"] != "segments"]
    assert [row["lanes"] for row in both] == [1, 2]
    assert all(row["parity"]["passes"] for row in both)


def test_a_checkpoint_in_several_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One export serves all of them, told apart in the tables."""
    from mrsep_deploy.export import exporter

    exported: list[Path] = []

    def export(_loaded: object, name: str, target: Path) -> Bundle:
        exported.append(target)
        return tiny_bundle(target, name=name)

    monkeypatch.setattr(exporter, "export_model", export)
    request = Request([str(checkpoint("htdemucs_nn"))], ("ort",), against=(), batches=(1, 3))
    found = plan(request, tmp_path)
    assert [entry.bundle.manifest.batch for entry in found] == [1, 3]
    assert len({entry.key for entry in found}) == 2
    assert len(exported) == 1


def test_a_bundle_in_several_batches(tmp_path: Path) -> None:
    """Right stems of segments and of a song whose last batch is short; in lower precision, too."""
    target = tmp_path / "b.json"
    found = run(
        str(tiny_bundle(tmp_path).path), "--batch", "1,3", "--engine", "ort", "--precision", "fp32,fp16",
        "--against", "none", "--length", "0.1", "--rounds", "1", "--json", str(target),
    )  # fmt: skip
    assert found.exit_code == errors.DONE, found.output
    plain = json.loads(target.read_text())
    seconds = SAMPLES / 8000
    assert [(row["batch"], row["audio_seconds"], row["status"]) for row in plain["rows"]] == [
        (batch, pytest.approx(audio), "ok") for batch in (1, 3) for audio in 2 * [batch * seconds] + 2 * [0.1]
    ]
    assert [facts["batch"] for facts in plain["models"].values()] == [1, 3]


def test_a_precision_an_engine_lacks_is_a_row(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    request = Request((str(bundle.path),), ("ort", "ort-cuda"), ("fp32", "bf16"), against=(), threads=1)
    entries = plan(request, tmp_path)
    assert [c.label for c in entries[0].contenders] == ["ort fp32", "ort bf16", "ort-cuda fp32"]
    assert [c.label for c, _ in entries[0].refused] == ["ort-cuda bf16"]
    found = benchmark(entries, Settings(rounds=2, timeline=False), silent)
    statuses = {row.label: row.status for row in found.rows}
    assert statuses == {
        "ort fp32": "ok",
        "ort bf16": "ok",
        "ort-cuda fp32": statuses["ort-cuda fp32"],  # as the machine has a GPU or not
        "ort-cuda bf16": "unavailable",
    }
    (lower,) = (row for row in found.rows if row.label == "ort bf16")
    assert lower.contender.bundle != str(bundle.path)


# --- contenders that go wrong


def test_wrong_and_broken_contenders_are_rows_that_say_why(tmp_path: Path, planted: str) -> None:
    names = ("Wrong", "NotFinite", "Absent", "BreaksInARound", "Dies", "Chatty", "Nowhere")
    made = [ours(tmp_path, "right"), *(ours(tmp_path, name, planted + name) for name in names)]
    found = raced(tmp_path, made, rounds=4)
    rows = {row.label: row for row in found.rows}
    assert {label: row.status for label, row in rows.items()} == {
        "right": "ok",
        "Wrong": "failed",
        "NotFinite": "failed",
        "Absent": "unavailable",
        "BreaksInARound": "failed",
        "Dies": "failed",
        "Chatty": "ok",
        "Nowhere": "failed",
    }
    why = r"wrong stems: [\d.]+ dB, limit 100 \(other, against right, its error [\d.]+ dB below the mix, limit 125\)"
    assert re.fullmatch(why, rows["Wrong"].reason)
    assert rows["Wrong"].parity is not None
    assert not rows["Wrong"].parity.passes
    assert "no finite numbers" in rows["NotFinite"].reason
    assert (rows["Absent"].reason, rows["Absent"].fix) == ("there is no such library", "pip install it")
    assert rows["BreaksInARound"].reason == "stage bottleneck failed: out of memory"
    assert rows["Dies"].reason == "its process ended (code 9): Segmentation fault of a library"
    assert "Nowhere" in rows["Nowhere"].reason
    for row in rows.values():
        assert len(row.seconds) == (4 if row.status == "ok" or row.label in ("Wrong", "NotFinite") else 0)
    page = to_markdown(found)
    assert "Wrong failed: wrong stems: " in page
    assert "| Absent | unavailable |" in page.replace("–", "").replace("|  ", "")
    assert len(list(csv.reader(io.StringIO(to_csv(found))))) == 1 + len(rows)
    json.loads(to_json(found), parse_constant=pytest.fail)


def test_stems_that_become_wrong_during_the_rounds(tmp_path: Path, planted: str) -> None:
    made = [ours(tmp_path, "right"), ours(tmp_path, "later", planted + "WrongLater")]
    rows = {row.label: row for row in raced(tmp_path, made).rows}
    assert rows["right"].status == "ok"
    assert rows["later"].status == "failed"
    assert rows["later"].reason.startswith("wrong stems: ")
    assert rows["later"].reason.endswith("after the rounds")
    assert len(rows["later"].seconds) == 3


def test_songs_put_together_otherwise(tmp_path: Path) -> None:
    """Of a song the first contender's stems are the reference, and one that cuts it elsewhere is not like it."""
    found = raced(tmp_path, [ours(tmp_path, "a"), ours(tmp_path, "b", overlap=0.6)], lengths=(0.1,))
    assert [row.status for row in found.rows] == ["ok", "ok", "ok", "failed"]
    assert re.search(r"against a, its error [\d.]+ dB below the mix, limit 125\)$", found.rows[3].reason)
    assert len(found.rows[3].seconds) == 3


def test_nothing_that_works(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    found = run(str(bundle.path), "--engine", "ort", "--mode", "graph", "--against", "none", "--rounds", "1")
    assert found.exit_code == errors.FAILED
    assert "has no graphs to capture" in found.stdout
    found = run(
        str(bundle.path),
        "--engine",
        "ort",
        "--mode",
        "sequential,graph",
        "--against",
        "none",
        "--rounds",
        "1",
    )
    assert found.exit_code == errors.PARTIAL


# --- interrupted


def test_a_race_that_is_interrupted_keeps_its_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    from mrsep_deploy.bench.process import MeasuringProcess

    ask = MeasuringProcess.ask

    def interrupting(self: MeasuringProcess, do: str, *arguments: Any, **more: Any) -> Any:
        asked.append(do)
        if asked.count("run") == 9:
            raise KeyboardInterrupt
        return ask(self, do, *arguments, **more)

    monkeypatch.setattr(MeasuringProcess, "ask", interrupting)
    found = raced(tmp_path, [ours(tmp_path, "a"), ours(tmp_path, "b")], rounds=50, lengths=(0.1,))
    assert found.interrupted
    # two turns to warm up, then three rounds of two; the ninth turn never ended
    assert [(row.status, len(row.seconds)) for row in found.rows] == [
        ("ok", 3), ("ok", 3), ("skipped", 0), ("skipped", 0)
    ]  # fmt: skip
    assert {row.reason for row in found.rows[2:]} == {"it was interrupted before"}
    assert "Interrupted: what was measured before stands." in to_markdown(found)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_writes_what_is_there(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    target = tmp_path / "b.json"
    command_line = [
        *(
            sys.executable,
            "-m",
            "mrsep_deploy",
            "bench",
            str(bundle.path),
            "--engine",
            "ort",
            "--against",
            "none",
        ),
        *("--rounds", "1000000", "--json", str(target)),
    ]
    with subprocess.Popen(
        command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "round 20 of" in line:
                # To the whole group, as a terminal does: measuring processes leave the decision to the first.
                os.killpg(process.pid, signal.SIGINT)
                break
        said = process.communicate(timeout=60)
    assert process.returncode == main.INTERRUPTED, said
    assert said[1].rstrip().endswith("interrupted")
    plain = json.loads(target.read_text())
    assert plain["interrupted"]
    assert [row["status"] for row in plain["rows"]] == ["ok"]
    assert len(plain["rows"][0]["seconds"]) >= 18


def test_a_budget_ends_a_race(tmp_path: Path) -> None:
    began = time.perf_counter()
    found = raced(tmp_path, [ours(tmp_path, "a")], rounds=10**9, seconds=0.2)
    assert 1 <= found.races[0].rounds < 10**9
    assert time.perf_counter() - began < 60


# --- against PyTorch


@pytest.mark.slow
def test_a_checkpoint_against_torch_and_demucs(tmp_path: Path) -> None:
    found = run(
        *(
            str(small_package.write(tmp_path / "small.th")),
            "--engine",
            "ort",
            "--rounds",
            "2",
            "--length",
            "2.5",
        ),
        *("--json", str(tmp_path / "b.json")),
    )
    assert found.exit_code == errors.DONE, found.output
    plain = json.loads((tmp_path / "b.json").read_text())
    assert [row["label"] for row in plain["rows"]] == 2 * ["torch", "demucs", "ort"]
    segments, songs = plain["rows"][:3], plain["rows"][3:]
    assert {row["parity"]["reference"] for row in segments} == {"PyTorch in float64"}
    assert {row["parity"]["reference"] for row in songs} == {"torch"}
    for row in plain["rows"]:
        assert row["status"] == "ok"
        assert all(snr is None or snr > 90 for snr in row["parity"]["snr_db"].values())
    assert plain["models"]["small"]["macs_counted"] == "graphs"
    assert set(plain["rows"][2]["ratios"]) == {"torch", "demucs"}


@pytest.mark.slow
def test_other_families_have_no_demucs(exports: Export) -> None:
    found = plan(Request((str(exports("htdemucs_n").path),), ("ort",)), Path())
    assert [c.label for c in found[0].contenders] == ["torch", "ort"]
    named = plan(Request((str(exports("htdemucs_n").path),), ("ort",), against=("demucs",)), Path())
    rows = benchmark(named, Settings(rounds=1, timeline=False), silent).rows
    assert {row.label: row.status for row in rows} == {"demucs": "unavailable", "ort": "ok"}
    assert "has no htdemucs_n" in rows[0].reason


# --- where the time goes


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_profile(tmp_path: Path, exports: Export, engine: str) -> None:
    pytest.importorskip("openvino")
    target = tmp_path / "p.json"
    bundle = exports("htdemucs")
    arguments = ("--profile", "--engine", engine, "--rounds", "3", "--json", str(target), "--threads", "1")
    found = run(str(bundle.path), *arguments)
    assert found.exit_code == errors.DONE, found.output
    profile = json.loads(target.read_text(), parse_constant=pytest.fail)["profiles"][0]
    assert (profile["status"], profile["label"], profile["runs"]) == ("ok", engine, 3)
    assert [stage["name"] for stage in profile["stages"]] == [s.name for s in bundle.manifest.stages]
    assert sum(stage["share"] for stage in profile["stages"]) == pytest.approx(1)
    for stage in profile["stages"]:
        if stage["kind"] != "graph":
            assert stage["operators"] == []
            continue
        assert stage["macs"] > 0
        assert stage["times"] == pytest.approx(stage["seconds"] / stage["floor"]["floor"])
        assert any(each["kind"].startswith(("Conv", "FullyConnected", "Gemm")) for each in stage["operators"])
        assert sum(each["share"] for each in stage["operators"]) == pytest.approx(1)
        operators = sum(each["seconds"] for each in stage["operators"])
        assert operators > 0
        assert len(stage["nodes"]) == 10
        assert stage["nodes"][0]["seconds"] == max(node["seconds"] for node in stage["nodes"])
    for text in ("decoder.time", "× floor", "inverse (host)"):
        assert text in found.stdout


def test_a_profile_that_fails_is_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mrsep_deploy.bench import profile

    monkeypatch.setattr(profile, "read_ort_profile", lambda _text: json.loads("no json"))
    found = run(str(tiny_bundle(tmp_path).path), "--profile", "--engine", "ort,openvino", "--rounds", "1")
    assert found.exit_code == errors.PARTIAL
    assert "tiny on ort failed: the profile of stage branch.16 cannot be read" in found.stdout
    assert "tiny on openvino: " in found.stdout


def test_rows_without_times_have_no_ratios() -> None:
    contender = Contender("a", OURS, "bundle")
    one, other = Row(contender), Row(contender)
    assert one.ratio_to(other) is None
    one.seconds, other.seconds = [1.0, 2.0], [2.0, 4.0]
    assert one.ratio_to(other) is None, "neither is known to be right"
    one.end("ok")
    other.end("ok")
    assert one.ratio_to(other) == {"median": 2.0, "low": 2.0, "high": 2.0}
    one.end("failed", "wrong")
    assert one.seconds == []
    assert one.median is None
