"""Measures the best rates of a machine: matrix products and copies, of a CPU on as many threads as the contenders have.

python -m mrsep_deploy.bench.ceilings THREADS

Each device is measured in a process of its own: BLAS reads how many threads it may use when it is loaded, and a
context on a GPU holds memory. The best of some runs counts: a ceiling is the best that the machine can do, not its
average.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mrsep_deploy.errors import EngineError

SIZE = 2048
COPY_BYTES = 2**27
"""Of each of the two blocks: more than caches hold."""
REPEATS = 7
LIMIT_SECONDS = 300.0
BLAS_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
HOW = {
    "flop_per_second": f"sgemm of {SIZE} x {SIZE} through NumPy's BLAS, the best of {REPEATS}",
    "bytes_per_second": f"copy of {COPY_BYTES // 2**20} MiB by NumPy, read and written bytes together, the best "
    f"of {REPEATS}",
}


def ceilings_for(devices: Collection[str], threads: int) -> dict[str, Mapping[str, object]]:
    """What each of these devices can do at best: ``flop_per_second`` by precision, ``bytes_per_second``.

    Of a GPU, whose rates torch measures, there is only the ``reason`` if that is not possible.

    Raises:
        EngineError: the processor's could not be measured.
    """
    found: dict[str, Mapping[str, object]] = {}
    if "cpu" in devices:
        rates = cpu_ceilings(threads)
        found["cpu"] = {
            # Lower precision is computed in float32 on a CPU.
            "flop_per_second": dict.fromkeys(("fp32", "fp16", "bf16"), rates["flop_per_second"]),
            "bytes_per_second": rates["bytes_per_second"],
            "threads": threads,
            "how": dict(HOW),
        }
    if "cuda" in devices:
        try:
            found["cuda"] = _measured("mrsep_deploy.bench.ceilings_cuda")
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            found["cuda"] = {"reason": f"the GPU's own speed could not be measured: {error}"}
    return found


def cpu_ceilings(threads: int) -> dict[str, float]:
    """``flop_per_second`` in float32 and ``bytes_per_second`` of this machine on so many threads.

    Raises:
        EngineError: they could not be measured.
    """
    try:
        found = _measured(
            "mrsep_deploy.bench.ceilings", str(threads), **dict.fromkeys(BLAS_VARIABLES, str(threads))
        )
        return {name: float(found[name]) for name in HOW}
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"the machine's own speed could not be measured: {error}") from error


def _measured(module: str, *arguments: str, **variables: str) -> dict[str, Any]:
    """What a module prints as JSON, run in a process of its own."""
    command = [sys.executable, "-m", module, *arguments]
    env = {**os.environ, **variables}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def matrix_rate(size: int = SIZE, repeats: int = REPEATS) -> float:
    """Floating-point operations per second of a square product in float32, on BLAS' threads."""
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((size, size), np.float32) for _ in range(2))
    out = np.empty_like(left)
    return 2 * size**3 / _best(lambda: np.matmul(left, right, out=out), repeats)


def copy_rate(threads: int, size: int = COPY_BYTES, repeats: int = REPEATS) -> float:
    """Bytes per second, read and written, of a copy that ``threads`` share."""
    source, target = np.ones(size // 4, np.float32), np.zeros(size // 4, np.float32)
    pieces = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:  # NumPy lets go of Python's lock while it copies
        seconds = _best(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pieces)), repeats)
    return 2 * source.nbytes / seconds


def _best(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest run, after one to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


if __name__ == "__main__":
    print(json.dumps({"flop_per_second": matrix_rate(), "bytes_per_second": copy_rate(int(sys.argv[1]))}))
