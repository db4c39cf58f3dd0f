"""Many cases in one process: run by ``run.py``, which watches it from outside.

    python campaign.py PLAN.json

What it is about to read stands in a file that is mapped to memory, with the number of the case: a process that crashes,
hangs or grows in a native library leaves the case behind.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import logging
import mmap
import os
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard import Guard
from seeds import seeds, words
from targets import TARGETS, Target

BOARD_BYTES = 1 << 20
HEAD = struct.Struct("<QQ")
MAX_KINDS = 12  # of failures; the cases go on until there are as many
BATCH = 5000  # examples after which hypothesis starts anew: it keeps a tree of them
MAX_LENGTH = 1 << 14
INSTRUMENTED = (
    *(
        "mrsep_deploy.export",
        "mrsep_deploy.bundle",
        "mrsep_deploy.bundle.places",
    ),
    *(
        "mrsep_deploy.bundle.manifest_json",
        "mrsep_deploy.bundle.manifest_check",
        "mrsep_deploy.files.strict_json",
        "mrsep_deploy.files.typed_json",
    ),
    *(
        "mrsep_deploy.bundle.onnx_scan",
        "mrsep_deploy.audio",
        "yaml",
        "zipfile",
        "pickletools",
        "json",
        "safetensors",
    ),
)


@dataclass(frozen=True)
class Plan:
    """What one process does."""

    reader: str
    fuzzer: str
    cases: int
    seed: int
    folder: str
    board: str
    replayed: list[str]


class Finished(Exception):
    """As many cases as were asked for."""


class Campaign:
    """Reads cases, counts them and keeps those that fail."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.done = self.refused = self.accepted = 0
        self.slowest = 0.0
        self.failures: dict[str, dict[str, str]] = {}
        folder = Path(plan.folder)
        (folder / "case").mkdir()
        self._kept = folder / "failures"
        self._kept.mkdir()
        self._board = mmap.mmap(os.open(plan.board, os.O_RDWR), BOARD_BYTES)
        self._target: Target = TARGETS[plan.reader](folder / "case")
        for data in seeds(plan.reader):  # what reading imports is imported
            self._target.place(data)
            self._read_placed()
        self.refused = self.accepted = 0
        self._files = sorted(os.listdir(folder / "case"))
        self._guard = Guard(folder / "case")

    def case(self, data: bytes) -> None:
        """Read one case. Raises ``Finished`` after the last."""
        self.done += 1
        shown = data[: BOARD_BYTES - HEAD.size]
        self._board[: HEAD.size + len(shown)] = HEAD.pack(self.done, len(shown)) + shown
        self._target.place(data)
        began = time.perf_counter()
        with self._guard.watching():
            error = self._read_placed()
        self.slowest = max(self.slowest, time.perf_counter() - began)
        if error is not None:
            self._keep(data, *error)
        elif self._guard.noted:
            self._keep(data, self._guard.noted[0].split()[0], "; ".join(self._guard.noted[:5]))
        elif sorted(os.listdir(self._target.folder)) != self._files:
            self._keep(data, "files left behind", ", ".join(os.listdir(self._target.folder)))
        if self.done >= self.plan.cases:
            raise Finished

    def _read_placed(self) -> tuple[str, str] | None:
        """What is wrong with how it was read: a name for that kind of failure, and all that is known."""
        from mrsep_deploy.errors import MrsepError

        try:
            self._target.read()
        except MrsepError as error:
            self.refused += 1
            text = str(error)
            if not text.isprintable() or not 10 <= len(text) < 2000:
                return "message", f"no clear line: {ascii(text)[:400]}"
            return None
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = next(
                (f for f in reversed(frames) if "mrsep_deploy" in f.filename or "export" in f.filename),
                frames[-1],
            )
            return f"{type(error).__name__} {Path(where.filename).name}:{where.name}", traceback.format_exc()
        self.accepted += 1
        return None

    def _keep(self, data: bytes, kind: str, text: str) -> None:
        if kind in self.failures:
            return
        name = hashlib.sha256(data).hexdigest()[:12]
        (self._kept / name).write_bytes(data)
        self.failures[kind] = {"kind": kind, "file": str(self._kept / name), "text": text[-3000:]}
        if len(self.failures) >= MAX_KINDS:
            raise Finished

    def report(self) -> None:
        """Write what came of it, for the process that watches."""
        found: dict[str, Any] = {
            "cases": self.done,
            "refused": self.refused,
            "accepted": self.accepted,
            "slowest": round(self.slowest, 3),
            "failures": list(self.failures.values()),
        }
        Path(self.plan.folder, "report.json").write_text(json.dumps(found))


def with_hypothesis(campaign: Campaign) -> None:
    """Cases from strategies, in batches."""
    from generate import cases
    from hypothesis import HealthCheck, Phase, given, seed, settings

    strategy = cases(campaign.plan.reader)
    chosen = settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for batch in range(sys.maxsize):

        @seed(campaign.plan.seed * 1_000_003 + batch)
        @chosen
        @given(strategy)
        def run(data: bytes) -> None:
            campaign.case(data)

        run()


def with_atheris(campaign: Campaign) -> None:
    """Cases that libFuzzer makes, led by which branches of the readers they reach."""
    import atheris

    folder = Path(campaign.plan.folder)
    (folder / "corpus").mkdir()
    for number, data in enumerate(seeds(campaign.plan.reader)):
        (folder / "corpus" / str(number)).write_bytes(data)
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in words(campaign.plan.reader))
    (folder / "words").write_text("".join(f'"{word}"\n' for word in escaped))

    def run(data: bytes) -> None:
        try:
            campaign.case(data)
        except Finished:  # libFuzzer does not return
            campaign.report()
            os._exit(0)

    options = {
        "seed": campaign.plan.seed + 1,  # 0 means the time of day
        "max_len": MAX_LENGTH,
        "dict": folder / "words",
        "rss_limit_mb": 0,  # memory and time are watched from outside
        "timeout": 3600,
        "detect_leaks": 0,
        "artifact_prefix": f"{folder}/",
        "verbosity": 0,
        "print_final_stats": 0,
    }
    atheris.Setup(
        [sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(folder / "corpus")], run
    )
    atheris.Fuzz()


def replay(campaign: Campaign) -> None:
    """Nothing but what is in the corpus."""


FUZZERS: dict[str, Callable[[Campaign], None]] = {
    "hypothesis": with_hypothesis,
    "atheris": with_atheris,
    "replay": replay,
}


def main() -> None:
    plan = Plan(**json.loads(Path(sys.argv[1]).read_text()))
    faulthandler.enable()
    faulthandler.register(10)  # SIGUSR1: where it hangs
    logging.disable()
    warnings.simplefilter("ignore")
    with _instrumented(plan.fuzzer == "atheris"):
        campaign = Campaign(plan)
    with contextlib.suppress(Finished):
        for path in plan.replayed:
            campaign.case(Path(path).read_bytes())
        for data in seeds(plan.reader):
            campaign.case(data)
        FUZZERS[plan.fuzzer](campaign)
    campaign.report()


@contextlib.contextmanager
def _instrumented(wanted: bool) -> Iterator[None]:
    """Modules that are imported in the block tell atheris which branches they take."""
    if not wanted:
        yield
        return
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        yield


if __name__ == "__main__":
    main()
