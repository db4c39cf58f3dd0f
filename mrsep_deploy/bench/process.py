"""Starts a measuring process, sends it orders, and turns its failures into errors of one line."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from mrsep_deploy.bench.contenders import Contender
from mrsep_deploy.files.paths import HOME_VARIABLE

OPEN_SECONDS = 3600.0
"""TensorRT's builders take their time."""
RUN_SECONDS = 3600.0
CLOSE_SECONDS = 20.0
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "CUDA_CACHE_PATH": "cuda"}
"""Where others keep what they compile, by the variable that says where; a cold start begins without."""


class ContenderError(Exception):
    """A contender that does not work here, or went wrong.

    Attributes:
        kind: ``unavailable`` or ``failed``.
        fix: what would change that.
    """

    def __init__(self, reason: str, fix: str = "", kind: str = "failed") -> None:
        super().__init__(reason)
        self.fix, self.kind = fix, kind


class MeasuringProcess:
    """One contender's process.

    Args:
        contender: what it measures.
        folder: for its files; exists.
        home: where it keeps built engines: empty for a cold start.
    """

    def __init__(self, contender: Contender, folder: Path, home: Path) -> None:
        self.contender = contender
        self.cpu_seconds = 0.0
        self._orders = 0
        handle, name = tempfile.mkstemp(suffix=".json", dir=folder)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(contender), file)
        self._errors: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed with the process
        self._answers: queue.Queue[str | None] = queue.Queue()
        command = [sys.executable, "-m", "mrsep_deploy.bench.worker", name]
        caches = {name: str(home / folder) for name, folder in CACHES.items()}
        env = {**os.environ, **caches, HOME_VARIABLE: str(home)}
        self.born = time.time()
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def ask(self, do: str, limit: float = RUN_SECONDS, **values: object) -> Mapping[str, Any]:
        """Give an order and wait for the answer.

        Raises:
            ContenderError: it failed, died, or took longer than ``limit`` seconds.
        """
        assert self._process.stdin is not None
        self._orders += 1
        try:
            self._process.stdin.write(json.dumps({"do": do, "number": self._orders, **values}) + "\n")
            self._process.stdin.flush()
            answer = self._answer(time.monotonic() + limit)
        except BrokenPipeError:
            answer = None
        except queue.Empty:
            self.kill()
            raise ContenderError(f"it took longer than {limit:.0f} s") from None
        if answer is None:
            raise ContenderError(self._death())
        self.cpu_seconds = answer["cpu_seconds"]
        if "error" in answer:
            raise ContenderError(answer["error"], answer["fix"], answer["kind"])
        return answer

    def _answer(self, deadline: float) -> dict[str, Any] | None:
        """The answer to the last order; None if the process ended. Raises ``queue.Empty`` when it is too late."""
        while True:
            line = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            if line is None:
                return None
            answer: dict[str, Any] = json.loads(line)
            # Ctrl-C leaves orders whose answers nobody waited for.
            if answer["number"] == self._orders:
                return answer

    def _death(self) -> str:
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"code {code}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"its process ended ({how})" + (f": {lines[-1].strip()}" if lines else "")

    def close(self) -> None:
        """Let it end by itself, or end it. Idempotent."""
        if self._process.poll() is None:
            with contextlib.suppress(ContenderError):
                self.ask("close", CLOSE_SECONDS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it now. Idempotent."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join(CLOSE_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
