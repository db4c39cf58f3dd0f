"""The queue of sample blocks against one array, and where a block is not finite; the first line of an error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrsep_deploy.audio.blocks import BlockQueue, first_nonfinite
from mrsep_deploy.errors import first_line, named_line

Steps = list[tuple[str, int]]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["push", "take", "first", "drop"]), st.integers(0, 9)), max_size=30)
)
def test_a_queue_gives_what_one_array_gives(steps: Steps) -> None:
    queue, rest, pushed = BlockQueue(), np.zeros((2, 3, 0), np.float32), 0
    for step, count in steps:
        if step == "push":
            block = np.arange(pushed, pushed + 6 * count, dtype=np.float32).reshape(count, 3, 2).T
            pushed += 6 * count
            queue.push(block)
            rest = np.concatenate([rest, block], axis=-1)
        elif step == "drop":
            queue.drop(count)
            rest = rest[..., count:]
        elif not 0 < count <= rest.shape[-1]:
            with pytest.raises(ValueError, match="samples were asked for"):
                getattr(queue, step)(count)
        else:
            found = getattr(queue, step)(count)
            assert found.flags.c_contiguous
            np.testing.assert_array_equal(found, rest[..., :count])
            if step == "take":
                rest = rest[..., count:]
        assert len(queue) == rest.shape[-1]


def test_what_is_taken_is_a_copy() -> None:
    queue, block = BlockQueue(), np.ones((1, 4), np.float32)
    queue.push(block)
    queue.first(4)[:] = 7
    queue.take(4)[:] = 7
    np.testing.assert_array_equal(block, 1)


@pytest.mark.parametrize("shape", [(2, 9), (3, 2, 9), (9,)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_sample_that_is_not_finite(shape: tuple[int, ...], value: float) -> None:
    block = np.zeros(shape, np.float32)
    assert first_nonfinite(block) is None
    block[..., 7] = value
    block[(*(-1 for _ in shape[:-1]), 4)] = value
    assert first_nonfinite(block) == 4
    assert first_nonfinite(block[..., :0]) is None


@pytest.mark.parametrize(
    ("message", "line", "named"),
    [
        ("one\ntwo", "one", "OSError: one"),
        ("\n  \n three \n", "three", "OSError: three"),
        ("", "OSError", "OSError"),
        (" \n", "OSError", "OSError"),
        ("OSError", "OSError", "OSError: OSError"),
    ],
)
def test_the_first_line_of_an_error(message: str, line: str, named: str) -> None:
    assert first_line(OSError(message)) == line
    assert named_line(OSError(message)) == named
    assert first_line(OSError(), "no message") == "no message"
