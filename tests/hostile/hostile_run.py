"""The process that reads hostile inputs, one call of the program after the other, and tells what should not be.

python hostile_run.py KIND FOLDER
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
HANGS = 60.0
"""Seconds after which a call is ended, and the process with it."""
SECRET = "a text that nobody may see"
ENGINE = ("--engine", "ort", "--threads", "1")
PLAN: dict[str, object] = {
    "format": "mrsep-deploy precision plan",
    "format_version": 1,
    "precision": "float16",
    "rules": [],
    "keep": {},
}


def main(kind: str, place: Path) -> None:
    sys.path[:0] = [str(TESTS / room) for room in ("", "fuzz", "export", "bundle")]
    from hostile_models import bundles, checkpoints
    from hostile_songs import songs
    from hostile_texts import texts

    inside = place / "inside"
    (inside / "tmp").mkdir(parents=True)
    (place / "outside" / "secret.wav").write_text(SECRET)
    os.environ.update(MRSEP_DEPLOY_HOME=str(inside / "home"), TMPDIR=str(inside / "tmp"))
    tempfile.tempdir = None
    os.chdir(inside)
    reader = Reader(inside)
    kinds = {
        "songs": songs,
        "checkpoints": checkpoints,
        "bundles": bundles,
        "texts": texts,
        "canaries": canaries,
    }
    for case in kinds[kind]():
        reader.read(case)
    print(json.dumps(reader.report()))


@dataclass(frozen=True)
class Case:
    """One call of the program with one hostile input, or with several songs, each of which is one.

    Attributes:
        name: tells it from others in a report.
        arguments: of the program.
        songs: what is told apart in what ``run --json`` prints.
        call: reads it where no command does.
    """

    name: str
    arguments: list[str]
    songs: tuple[str, ...] = ()
    call: Callable[[], object] | None = None


class Reader:
    """Runs cases and notes what should not be."""

    def __init__(self, inside: Path) -> None:
        self._inputs = self._refused = self._accepted = 0
        self._slowest = 0.0
        self._wrong: list[str] = []
        self._inside = inside
        _warm_up()
        self._guard = _guard(inside)
        faulthandler.enable()

    def read(self, case: Case) -> None:
        """One case. One that hangs ends the process and shows where."""
        from click.testing import CliRunner

        from mrsep_deploy.commands.main import main as program

        if case.call is not None:
            program = _command(case.call)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        began = time.perf_counter()
        with self._guard.watching():
            done = CliRunner().invoke(program, case.arguments)
        self._slowest = max(self._slowest, time.perf_counter() - began)
        faulthandler.cancel_dump_traceback_later()
        said = done.stdout + done.stderr
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            self._note(case, f"{type(done.exception).__name__}: {done.exception}")
        elif "Traceback" in said or "This is a bug" in said:
            self._note(case, said[-300:])
        elif SECRET in said:
            self._note(case, "a file outside was shown")
        elif self._guard.noted:
            self._note(case, "; ".join(self._guard.noted[:3]))
        elif case.songs:
            self._judge_songs(case, done.stdout, done.stderr)
        else:
            self._judge(case, done.exit_code, done.stderr)

    def _judge(self, case: Case, code: int, stderr: str) -> None:
        self._inputs += 1
        if code == 0:
            self._accepted += 1
            return
        self._refused += 1
        errors = [line for line in stderr.splitlines() if line.startswith("mrsep-deploy: error: ")]
        if code not in (1, 2, 3) or len(errors) != 1 or not _is_clear(errors[0].partition("error: ")[2]):
            self._note(case, f"exit code {code}, {stderr[-300:]!r}")

    def _judge_songs(self, case: Case, stdout: str, stderr: str) -> None:
        """Every song has ended, and each that failed has a line that says why."""
        told = [json.loads(line) for line in stdout.splitlines()]
        ended = {line["track"]: line for line in told if line["event"] == "ended"}
        for song in case.songs:
            self._inputs += 1
            line = ended.get(song)
            if line is None:
                self._note(case, f"{song!r} did not end: {stderr[-300:]!r}")
            elif line["status"] == "done":
                self._accepted += 1
            else:
                self._refused += 1
                if not _is_clear(line["error"]):
                    self._note(case, f"{song!r}: {line['error']!r}")
        if stderr:
            self._note(case, f"beside the JSON: {stderr[-600:]!r}")

    def _note(self, case: Case, what: str) -> None:
        self._wrong.append(f"{case.name}: {what}")

    def report(self) -> dict[str, Any]:
        """What came of all cases."""
        return {
            "inputs": self._inputs,
            "refused": self._refused,
            "accepted": self._accepted,
            "slowest": round(self._slowest, 2),
            "rss": _peak_memory(),
            "wrong": self._wrong[:20],
        }


def _peak_memory() -> int:
    """The most resident memory this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what the system counts as used by a child begins with what its parent had
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(encoding="ascii"), re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _command(call: Callable[[], object]) -> Any:
    """A command of the program that does this."""
    import click

    from mrsep_deploy.commands.main import LazyGroup

    group = LazyGroup(params=[click.Option(["--debug"], is_flag=True), click.Option(["--config"])])
    group.get_command = lambda _context, _name: click.Command("it", callback=lambda: call() and None)  # type: ignore[method-assign]
    return group


def _is_clear(line: str) -> bool:
    return line.isprintable() and 20 <= len(line) < 2500


def _guard(inside: Path) -> Any:
    from guard import Guard

    class Commands(Guard):
        """Commands may write, but only inside; elsewhere nothing of a stranger's choice is read."""

        _changes = re.compile(r"os\.(remove|rename|rmdir|mkdir|link|symlink|chmod|chown|truncate|utime)$")
        _temporary = re.compile(r"(tempfile\.|shutil\.(rmtree|copyfile|move|copystat|copymode))")

        def _is_wrong(self, event: str, arguments: tuple[object, ...]) -> bool:
            if self._changes.match(event):
                return not all(self._is_inside(each) for each in arguments if isinstance(each, (str, bytes)))
            if event == "ctypes.dlopen":  # how engines reach the processor's settings
                return arguments[0] not in (None, "libm.so.6")
            if self._temporary.match(event):
                return not self._is_inside(arguments[0])
            return super()._is_wrong(event, arguments)

        def _is_wrong_to_open(self, path: object, flags: int) -> bool:
            if isinstance(path, int) or path == os.devnull:
                return False
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
                return not self._is_inside(path)
            place = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
            return place.startswith(("/etc/", "/dev/", "/root/.ssh", str(inside.parent / "outside")))

        def _is_inside(self, path: object) -> bool:
            place = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path)))), "")  # type: ignore[arg-type]
            return place.startswith(self._folder)

    return Commands(inside)


def _warm_up() -> None:
    """Everything that commands import is imported, and what they make once is made."""
    import pickles
    from bundles import tiny_bundle
    from click.testing import CliRunner

    from mrsep_deploy.bundle import registry
    from mrsep_deploy.commands.main import main as program

    registry.register(tiny_bundle(Path("models")))
    Path("honest").mkdir()
    write_song(Path("honest/a.wav"))
    write_song(Path("honest/b.wav"), 16000)
    Path("honest/text.wav").write_text("no audio")
    Path("honest/plan.json").write_text(json.dumps(PLAN))
    Path("honest/bag.toml").write_text('models = ["tiny", "tiny"]')
    Path("honest/bag.yaml").write_text("models: ['tiny', 'tiny']")
    Path("honest/empty.th").touch()
    pickles.write(Path("honest/small.th"))
    for arguments in (
        *(["run", "honest/a.wav", "--dry-run", "-n", f"honest/bag.{suffix}"] for suffix in ("toml", "yaml")),
        *(["export", "-q", f"honest/{name}"] for name in ("bag.yaml", "small.th", "empty.th")),
        ["run", "honest/a.wav", *ENGINE, "--precision", "mixed", "--plan", "honest/plan.json"],
        ["run", "honest", "--json", *ENGINE, "-o", "warm", "--resume"],
        ["run", "honest/a.wav", *ENGINE, "-o", "warm", "--flac"],
        ["run", "honest/a.wav", "--dry-run", "--precision", "mixed", "--plan", "honest/plan.json"],
        *(
            ["inspect", "tiny"],
            ["models"],
            ["cache", "list"],
            ["inspect", "nothing.th"],
            ["run", "x", "-n", "x.yaml"],
        ),
        ["inspect", str(TESTS / "golden" / "htdemucs_2nn.th")],
        ["run", "honest/a.wav", "-n", "models/none.zip"],
    ):
        CliRunner().invoke(program, arguments)


def write_song(path: Path, rate: int = 8000) -> None:
    import numpy as np
    import soundfile

    soundfile.write(path, 0.3 * np.random.default_rng(0).standard_normal((400, 2)), rate)


def generated(reader: str, count: int, strategy: Any = None) -> list[bytes]:
    """Files of ``fuzz/generate.py``, the same on every run."""
    from generate import cases
    from hypothesis import HealthCheck, Phase, given, seed, settings

    made: list[bytes] = []

    @seed(21)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(reader) if strategy is None else strategy)
    def collect(data: bytes) -> None:
        made.append(data)

    collect()
    return made


def canaries() -> Iterator[Case]:
    """Calls that do what no input may bring about."""
    for name, call in CANARIES.items():
        yield Case(name, ["it"], call=call)


def _raise(error: Exception) -> None:
    raise error


def _unclear() -> None:
    from mrsep_deploy.errors import AudioError

    _raise(AudioError("bad"))


CANARIES: dict[str, Callable[[], object]] = {
    "bug": lambda: {}["missing"],
    "unclear": _unclear,
    "program": lambda: os.system("true"),
    "process": lambda: subprocess.run(["true"], check=True),
    "read": lambda: Path("../outside/secret.wav").read_text(),
    "shown": lambda: print(SECRET),
    "write": lambda: Path("../outside/other").touch(),
    "link": lambda: os.symlink("x", "../outside/link"),
    "module": lambda: __import__("mutagen"),
    "code": lambda: eval("1 + 1"),
    "allowed": lambda: Path("tmp/mine").write_text("mine"),
}


if __name__ == "__main__":
    sys.modules["hostile_run"] = sys.modules["__main__"]
    main(sys.argv[1], Path(sys.argv[2]).resolve())
