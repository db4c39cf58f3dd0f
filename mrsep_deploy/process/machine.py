"""What this process may use of the machine."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of ``mallopt`` in glibc: free bytes at the heap's end that go back to the system, blocks outside the heap."""
TRIM_DEFAULT, MMAP_DEFAULT = 128 * 1024, 65536


def cpu_budget() -> int:
    """CPU cores this process may use: its affinity, and a container's quota where one is set."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, int(quota + 0.5)) if quota else cores)


def _cgroup_quota() -> float:
    """CPU quota in cores of the enclosing control group (v2, then v1); 0 if there is none."""
    root = Path("/sys/fs/cgroup")
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # no such files, or no quota: "max"
            quota, period = " ".join((root / name).read_text() for name in names).split()
            return max(float(quota) / float(period), 0.0)
    return 0.0


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:  # not on Linux
        pass
    return platform.processor() or platform.machine()


WIDE: Mapping[str, str] = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "amx_bf16": "AMX-BF16",
    "amx_fp16": "AMX-FP16",
}
"""Instructions that decide how fast a processor multiplies, by their names in ``/proc/cpuinfo``."""


def cpu_instructions() -> tuple[str, ...]:
    """Those of ``WIDE`` that the processor has, as far as the system tells."""
    with contextlib.suppress(OSError):  # not on Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "flags":
                flags = set(value.split())
                return tuple(title for flag, title in WIDE.items() if flag in flags)
    return ()


def release_heap() -> None:
    """Give what the process has freed back to the system, where the C library is glibc; elsewhere it does nothing.

    Loading graphs leaves 160 MB of freed heap behind (HTDemucs, ONNX Runtime), which what comes next cannot use.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def kept_heap() -> Iterator[None]:
    """Keeps what the process frees for what it needs next, where the C library is glibc; elsewhere it does nothing.

    A large tensor is otherwise mapped when it is made and unmapped when it is freed, and the system clears all of its
    pages each time: a third of the time that PyTorch computes a segment in. What is free at the end goes back.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        mallopt(M_MMAP_MAX, MMAP_DEFAULT)
        mallopt(M_TRIM_THRESHOLD, TRIM_DEFAULT)
        release_heap()


def _of_glibc(name: str) -> Callable[..., Any] | None:
    """A function of the C library, if it is one of glibc."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
