"""Memory that the process keeps between tensors, and gives back."""

from __future__ import annotations

import sys

import pytest

from mrsep_deploy.process.machine import kept_heap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only glibc maps large blocks one by one")
SIZE = 64 << 20
PAGES = SIZE // 4096


def faults() -> int:
    """Pages that the system has cleared for this process."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def cleared() -> int:
    """Pages cleared for four large blocks, one after the other."""
    before = faults()
    for _ in range(4):
        assert len(b"x" * SIZE) == SIZE
    return faults() - before


def test_freed_memory_is_kept_within_and_given_back_after() -> None:
    with kept_heap():
        cleared()
        assert cleared() < PAGES  # the system may take a few from elsewhere
    before = cleared()
    assert before > PAGES  # glibc's own way again
