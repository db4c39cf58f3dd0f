"""What SECURITY.md promises of the source, no shell, no eval, no pickle, no network, and of the fuzzing."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for folder in ("mrsep_deploy", "engines", "export") for path in (ROOT / folder).rglob("*.py")
)
BUILTINS = {"eval", "exec", "compile", "__import__"}
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "pty",
    "commands",
}
CALLS = {
    *(
        "torch.load",
        "torch.jit.load",
        "torch.hub.load",
        "os.system",
        "os.popen",
        "onnx.load_external_data_for_model",
    ),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "pandas.read_pickle"),
}
NETWORK = {"socket", "urllib", "http", "ftplib", "smtplib", "requests", "httpx", "aiohttp"}
FETCHING = Path("mrsep_deploy/fetching/transfer.py")
"""The one module that opens a connection, when ``fetch`` asks for it."""
FOR_FETCHING = ("requests", "urllib.parse")
"""The latter only reads addresses."""


def wrong(path: Path) -> Iterator[str]:
    """What a file does that no file may do."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            for name in names:
                allowed = name in FOR_FETCHING and path.as_posix().endswith(FETCHING.as_posix())
                if (
                    not allowed
                    and name.partition(".")[0] in MODULES | NETWORK
                    and getattr(node, "level", 0) == 0
                ):
                    yield f"line {node.lineno}: import {name}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in BUILTINS | CALLS:
                yield f"line {node.lineno}: {called}"
            for keyword in node.keywords:
                if keyword.arg in ("shell", "allow_pickle") and ast.unparse(keyword.value) != "False":
                    yield f"line {node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_shell_no_eval_no_pickle_no_network(path: Path) -> None:
    assert list(wrong(path)) == []


@pytest.mark.parametrize(
    "text",
    [
        *(
            "import pickle",
            "from urllib.request import urlopen",
            "eval('1')",
            "torch.load(p)",
            "os.system('x')",
        ),
        *("subprocess.run('x', shell=True)", "np.load(p, allow_pickle=True)", "yaml.load(text, Loader)"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "source.py").write_text(text)
    assert len(list(wrong(tmp_path / "source.py"))) == 1


def test_the_page_names_files_that_are_there() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    places = re.findall(r"`((?:tests|export|benchmarks)/[\w/.]+)`", page)
    assert len(places) > 4
    for place in places:
        assert (ROOT / place).exists(), place


def test_the_campaigns_were_as_long_as_it_says() -> None:
    """200,000 cases and more for every reader; none crashed, hung, or took 2 GB."""
    found = json.loads((ROOT / "benchmarks" / "results" / "fuzz.json").read_text(encoding="utf-8"))
    cases: dict[str, int] = {}
    for campaign in found["campaigns"]:
        assert campaign["crashes"] == []
        assert campaign["peak_rss_mb"] < 2000
        assert campaign["slowest_case"] < found["case_seconds"]
        cases[campaign["reader"]] = cases.get(campaign["reader"], 0) + campaign["cases"]
    readers = {"checkpoint", "safetensors", "bag", "manifest", "graph", "zip", "audio", "ffmpeg"}
    assert {reader for reader, count in cases.items() if count >= 200_000} == readers
