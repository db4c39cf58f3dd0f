"""Memory that the process keeps between tensors, and gives back."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only glibc maps large blocks one by one")

MEGABYTES = 64
PROGRAM = f"""
import json, sys
from mrsep_deploy.process.machine import kept_heap

def resident():
    "Megabytes of memory that the process holds."
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096 >> 20

def made_and_freed():
    before = resident()
    assert len(b"x" * ({MEGABYTES} << 20)) == {MEGABYTES} << 20
    return resident() - before

found = {{"without": made_and_freed()}}
with kept_heap():
    found["within"] = made_and_freed()
    held = resident()
found["given back"] = held - resident()
found["after"] = made_and_freed()
print(json.dumps(found))
"""


def test_freed_memory_is_kept_within_and_given_back_after() -> None:
    """In a process of its own: what a heap gives back depends on all that it was used for before."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    most = MEGABYTES // 2  # of what is kept or not, whatever else the process takes meanwhile
    assert found["within"] > most
    assert found["given back"] > most
    assert found["without"] < most
    assert found["after"] < most
