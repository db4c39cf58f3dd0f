"""One thread and no gradients: the models are so small that threads only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def quiet() -> Iterator[None]:
    """Puts both back in the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def quiet_torch() -> Iterator[None]:
    with quiet():
        yield
