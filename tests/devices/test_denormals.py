"""Worker threads take subnormal numbers as zero; the caller's thread is left as it was."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import tiny_bundle

from mrsep_deploy.devices.cpu import CpuDevice
from mrsep_deploy.devices.denormals import denormals_flushed, flush_denormals

supported = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the switch is known to work on Linux only",
)


def on_a_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


@supported
def test_only_the_calling_thread_is_switched() -> None:
    assert not denormals_flushed()
    assert on_a_thread(flush_denormals)
    assert on_a_thread(lambda: (flush_denormals(), denormals_flushed())) == (True, True)
    assert not denormals_flushed()
    assert not on_a_thread(denormals_flushed)


@supported
def test_rounding_stays_to_nearest() -> None:
    def after() -> tuple[np.float32, np.float32]:
        flush_denormals()
        return np.float32(1) + np.float32(2.0**-24), np.float32(1) + np.float32(1.5 * 2.0**-23)

    assert on_a_thread(after) == (np.float32(1), np.float32(1) + np.float32(2.0**-22))


@supported
def test_streams_are_switched() -> None:
    device = CpuDevice()
    stream, found = device.stream("test"), []
    stream.enqueue(lambda: found.append(denormals_flushed()))
    stream.synchronize()
    device.close()
    assert found == [True]


def test_an_engine_leaves_its_caller_alone(tmp_path: Path) -> None:
    """ONNX Runtime's first session in a process switches the thread that makes it: not the user's."""
    bundle = tiny_bundle(tmp_path / "tiny")
    program = f"""
import numpy as np
from mrsep_deploy.devices.denormals import denormals_flushed
from mrsep_deploy.separation.separator import Separator
with Separator({str(bundle.path)!r}, engine="ort") as separator:
    separator.run_segments(np.zeros(separator.manifest.tensor("mix").shape, np.float32))
    raise SystemExit(denormals_flushed())
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str | None) -> object:
        raise OSError(f"no {name}")

    monkeypatch.setattr("mrsep_deploy.devices.denormals.ctypes.CDLL", missing)
    assert on_a_thread(flush_denormals) is False
