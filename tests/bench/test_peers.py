"""``bench --against NAME=VENV``: packages of others in environments of their own, here stubs with their interface."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bundles import tiny_bundle
from click.testing import CliRunner, Result
from fake_peers import BROKEN, DEMUCS_ONNX, NOTHING, REVERSED, UNBLEND, environment
from goldens import Export

from mrsep_deploy import errors
from mrsep_deploy.bench import standalone
from mrsep_deploy.bench.contenders import OURS, PEERS, Contender, opponent
from mrsep_deploy.bench.process import MeasuringProcess
from mrsep_deploy.commands import main
from mrsep_deploy.commands.options import _without_folders

NEEDED = {"numpy", "torch", "onnxruntime", "demucs", "demucs_onnx", "unblend", "pynvml"}


def run(*arguments: str) -> Result:
    runner = CliRunner(env={"COLUMNS": "200"})
    return runner.invoke(main.main, ["bench", *arguments], prog_name=main.PROGRAM)


def prepared(given: str, folder: Path) -> None:
    """Does what comes before a peer is opened, in its process; raises what it raises."""
    process = MeasuringProcess(opponent(given, Contender("", OURS, "")), folder)
    try:
        process.ask("prepare", contender=vars(process.contender), model=str(folder))
    finally:
        process.close()


def opened(given: str, folder: Path) -> None:
    """The same for opening it, with a model that no package knows."""
    model = {
        "family": "other",
        "klass": None,
        "args": [],
        "kwargs": {},
        "sources": ["a"],
        "sample_rate": 8000,
    }
    (folder / "model.json").write_text(json.dumps({**model, "channels": 1, "segment_samples": 8}))
    process = MeasuringProcess(opponent(given, Contender("", OURS, "")), folder)
    try:
        process.open(folder / "mix.npy", folder)
    finally:
        process.close()


# --- what is wrong is one line


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("unblend=", "'unblend=' is none of"),
        ("torch=venv", "'torch=venv' is none of"),
        ("unblendx=venv", "=VENV may follow demucs, demucs-onnx, unblend, unblend-bf16"),
        ("unblend=nowhere", "nowhere holds no Python for unblend, expected a virtual environment"),
        ("none,demucs=venv", "exclude each other"),
    ],
)
def test_wrong_usage(tmp_path: Path, given: str, complaint: str) -> None:
    found = run(str(tiny_bundle(tmp_path).path), "--engine", "ort", "--against", given)
    assert found.exit_code == errors.USAGE
    assert complaint in " ".join(found.stderr.split())
    assert "Traceback" not in found.output


def test_the_same_peer_twice(tmp_path: Path) -> None:
    python = f"unblend={sys.executable}"
    found = run(str(tiny_bundle(tmp_path).path), "--engine", "ort", "--against", f"{python},{python}")
    assert found.exit_code == errors.USAGE
    assert "unblend is named twice" in found.stderr


@pytest.mark.parametrize(
    ("name", "files", "versions", "complaint"),
    [
        ("unblend", NOTHING, {}, r"no unblend was found in .*, expected version 1\.0"),
        ("unblend", UNBLEND, {"unblend": "2.1.0"}, r"unblend 2\.1\.0 was found, expected version 1\.0"),
        ("unblend-bf16", UNBLEND, {"unblend": "1.10"}, r"unblend 1\.10 was found, expected version 1\.0"),
        ("demucs", NOTHING, {"demucs": "3.0.6"}, r"demucs 3\.0\.6 was found, expected version 4"),
        ("demucs-onnx", DEMUCS_ONNX, {"demucs_onnx": "0.4.0"}, r"demucs-onnx 0\.4\.0 was found, expected version 0\.3"),
    ],
)  # fmt: skip
def test_a_peer_that_is_missing_or_unknown(
    tmp_path: Path, name: str, files: Mapping[str, str], versions: dict[str, str], complaint: str
) -> None:
    place = environment(tmp_path / "venv", files, **versions)
    with pytest.raises(errors.EngineUnavailableError, match=complaint) as found:
        prepared(f"{name}={place}", tmp_path)
    assert "\n" not in str(found.value)
    package = name.removesuffix("-bf16")
    assert found.value.fix.startswith(f"{place / 'bin' / 'python'} -m pip install") or sys.platform == "win32"
    assert f'"{package}==' in found.value.fix


def test_a_peer_that_cannot_be_imported(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", BROKEN, unblend="1.0.0")
    with pytest.raises(
        errors.EngineUnavailableError, match=r"^unblend cannot be imported in .* \(libtorch_cuda"
    ):
        opened(f"unblend={place}", tmp_path)


def test_an_interpreter_that_does_not_start(tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text("no program")
    with pytest.raises(errors.EngineUnavailableError, match="python cannot be started"):
        prepared(f"unblend={other}", tmp_path)


def test_what_is_installed_here_is_not_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``PYTHONPATH`` is for this interpreter: another one would import what does not fit it."""
    planted = tmp_path / "planted"
    (planted / "unblend-1.0.9.dist-info").mkdir(parents=True)
    told = "Metadata-Version: 2.1\nName: unblend\nVersion: 1.0.9\n"
    (planted / "unblend-1.0.9.dist-info" / "METADATA").write_text(told)
    monkeypatch.setenv("PYTHONPATH", str(planted))
    prepared("unblend", tmp_path)
    place = environment(tmp_path / "venv", NOTHING)
    with pytest.raises(errors.EngineUnavailableError, match="no unblend was found"):
        prepared(f"unblend={place}", tmp_path)


def test_a_model_that_cannot_be_handed_over_is_a_row(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", UNBLEND, unblend="1.0.0")
    found = run(
        *(str(tiny_bundle(tmp_path).path), "--engine", "ort", "--against", f"unblend={place}"),
        *("--rounds", "1", "--json", str(tmp_path / "b.json")),
    )
    assert found.exit_code == errors.PARTIAL, found.output
    peer, own = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert (peer["status"], own["status"]) == ("unavailable", "ok")
    assert peer["reason"].startswith("the model cannot be handed over: ")


def test_reports_do_not_say_where_environments_lie() -> None:
    word = "unblend=/home/me/venvs/unblend,demucs=venvs/d,torch"
    assert _without_folders(word) == "unblend=unblend,demucs=venvs/d,torch"
    assert _without_folders(f"--against={word}") == "--against=unblend=unblend,demucs=venvs/d,torch"
    assert _without_folders("/home/me/a,b=/c.wav") == "c.wav"


# --- what is right


def test_the_files_of_a_peer_need_nothing_of_this_project() -> None:
    """They run where it is not installed: Python's library, each other, NumPy and the peers' packages."""
    (place,) = standalone.__path__
    files = {path.stem: path for path in Path(place).glob("*.py")}
    for path in files.values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        checked = [
            n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
        ]
        unread = {id(node) for each in checked for node in each.body}
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom) and id(node) not in unread:
                names = [node.module or ""]
            roots = {name.partition(".")[0] for name in names}
            assert roots <= {*sys.stdlib_module_names, *NEEDED, *files}, path


@pytest.mark.slow
def test_peers_race_on_the_same_weights(tmp_path: Path, exports: Export) -> None:
    unblend = environment(tmp_path / "u", UNBLEND, unblend="1.0.7")
    wrong = environment(tmp_path / "w", REVERSED, unblend="1.0.8")
    onnx = environment(tmp_path / "o", DEMUCS_ONNX, demucs_onnx="0.3.9")
    against = f"unblend={unblend},unblend-bf16={wrong},demucs-onnx={onnx},demucs={unblend}"
    found = run(
        *(str(exports("htdemucs").path), "--engine", "ort", "--against", against, "--threads", "1"),
        *("--rounds", "2", "--length", "2.5", "--json", str(tmp_path / "b.json")),
    )
    assert found.exit_code == errors.PARTIAL, found.output
    plain: dict[str, Any] = json.loads((tmp_path / "b.json").read_text())
    assert str(tmp_path) not in plain["command"]
    segments = {row["label"]: row for row in plain["rows"] if row["workload"] == "segments"}
    songs = {row["label"]: row for row in plain["rows"] if row["workload"] != "segments"}
    assert list(segments) == ["unblend", "unblend-bf16", "demucs-onnx", "demucs", "ort"]
    for label in ("unblend", "demucs-onnx", "demucs", "ort"):
        row = segments[label]
        assert row["status"] == "ok", row["reason"]
        assert row["parity"]["reference"] == "PyTorch in float64"
        assert all(snr is None or snr > 90 for snr in row["parity"]["snr_db"].values())
        assert len(row["seconds"]) == len(songs[label]["seconds"]) == 2
        assert row["memory"]["peak_bytes"] > 2**20
        assert set(row["start_up"]["warm"]) == {"process", "import", "load", "first_segments", "total"}
    assert segments["unblend-bf16"]["reason"].startswith("wrong stems: ")
    assert segments["unblend-bf16"]["precision"] == "bf16"
    assert ", limit 42 " in segments["unblend-bf16"]["reason"]
    assert songs["unblend"]["status"] == songs["demucs"]["status"] == songs["ort"]["status"] == "ok"
    assert songs["demucs-onnx"]["reason"].startswith("wrong stems: "), "the stub's chunks do not overlap"
    assert segments["unblend"]["about"].startswith("unblend 1.0.7, torch ")
    assert segments["unblend-bf16"]["about"].endswith("is cast once it is loaded")
    assert "demucs-onnx is demucs-onnx 0.3.9, " in found.stdout
    assert segments["ort"]["about"] == ""


@pytest.mark.slow
def test_a_model_that_a_peer_does_not_take(tmp_path: Path, exports: Export) -> None:
    unblend = environment(tmp_path / "u", UNBLEND, unblend="1.0.7")
    found = run(
        *(str(exports("htdemucs_n").path), "--engine", "ort", "--against", f"unblend={unblend}"),
        *("--rounds", "1", "--json", str(tmp_path / "b.json")),
    )
    assert found.exit_code == errors.PARTIAL, found.output
    peer = json.loads((tmp_path / "b.json").read_text())["rows"][0]
    assert peer["status"] == "unavailable"
    assert peer["reason"] == "it does not take htdemucs_n (Could not load the checkpoint)"


def test_every_peer_is_known_in_its_environment() -> None:
    from mrsep_deploy.bench.standalone import peers

    for opener in PEERS.values():
        assert issubclass(getattr(peers, opener.removeprefix("peers:")), peers.Peer)
