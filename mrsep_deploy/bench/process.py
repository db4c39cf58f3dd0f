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
from mrsep_deploy.bench.workloads import Workload
from mrsep_deploy.errors import EngineError, EngineUnavailableError
from mrsep_deploy.files.paths import HOME_VARIABLE

SECONDS = 3600.0
"""That an order may take: TensorRT's builders take their time."""
CLOSE_SECONDS = 20.0
PEER_WORKER = Path(__file__).parent / "standalone" / "peer_worker.py"
OF_OUR_PYTHON = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "__PYVENV_LAUNCHER__")
"""Variables that would let another interpreter import what is installed for this one, or not its own script."""
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "CUDA_CACHE_PATH": "cuda"}
"""Where others keep what they compile, by the variable that says where; a cold start begins without."""


class MeasuringProcess:
    """One contender's process.

    Args:
        contender: what it measures.
        home: folder where it keeps built engines: empty for a cold start.

    Attributes:
        cpu_seconds: that it has used until its last answer.
        peak_bytes: the most memory it has held until then; None where the system does not tell.
    """

    def __init__(self, contender: Contender, home: Path) -> None:
        self.contender = contender
        self.cpu_seconds = 0.0
        self.peak_bytes: int | None = None
        self._orders = 0
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._answers: queue.Queue[str | None] = queue.Queue()
        caches = {variable: str(home / folder) for variable, folder in CACHES.items()}
        self._born = time.time()
        command, own = [sys.executable, "-m", "mrsep_deploy.bench.worker"], dict(os.environ)
        if contender.python:
            command = [contender.python, str(PEER_WORKER)]
            if contender.python != sys.executable:
                own = {name: value for name, value in own.items() if name not in OF_OUR_PYTHON}
        try:
            self._process = subprocess.Popen(
                command,
                env={**own, **caches, HOME_VARIABLE: str(home)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        except OSError as error:
            self._errors.close()
            raise EngineUnavailableError(f"{command[0]} cannot be started ({error.strerror})") from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def open(self, mix: Path, model: Path | None = None) -> Mapping[str, Any]:
        """Load the contender and run the first segments of a workload's file; :meth:`ask` says what it raises.

        Args:
            model: for a peer, the folder with its model.
        """
        given: dict[str, Any] = {} if model is None else {"model": str(model)}
        return self.ask("open", contender=asdict(self.contender), mix=str(mix), born=self._born, **given)

    def run(self, workload: Workload, turn: int) -> Mapping[str, Any]:
        """Run on the item of a turn: ``seconds``, and ``joules`` by meter; :meth:`ask` says what it raises."""
        item = turn % workload.items
        return self.ask("run", mix=str(workload.path), item=item, song=workload.song)

    def ask(self, do: str, limit: float = SECONDS, **values: object) -> Mapping[str, Any]:
        """Give an order, a method of :class:`mrsep_deploy.bench.worker.Worker`, and wait for the answer.

        Raises:
            EngineUnavailableError: the contender does not work here.
            EngineError: it failed, died, or took longer than ``limit`` seconds.
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
            raise EngineError(f"it took longer than {limit:.0f} s") from None
        if answer is None:
            raise EngineError(self._death())
        self.cpu_seconds, self.peak_bytes = answer["cpu_seconds"], answer["peak_bytes"]
        if "error" in answer:
            kind = EngineUnavailableError if answer["status"] == "unavailable" else EngineError
            raise kind(answer["error"], answer["fix"])
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
            with contextlib.suppress(EngineError):
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
