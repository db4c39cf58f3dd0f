"""Measures the best rates of a GPU: copies and matrix products on random data, through torch.

python -m mrsep_deploy.bench.ceilings_cuda
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

SIZE = 8192
COPY_BYTES = 2**30
REPEATS = 20
WARM_UP = 3
FLOAT32_ERROR = 1e-5
"""Sums of 576 products in float32 are off by 2e-7; with TF32's ten bits by 3e-4."""


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products and convolutions may round their factors to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    set_tf32(allowed, allowed)
    try:
        yield
    finally:
        set_tf32(*before)


def set_tf32(products: bool, convolutions: bool) -> None:
    """The same from now on, separately for products and convolutions.

    Both of torch's ways are taken, the older one first, which sets the newer one too: to ``none``, not to
    ``ieee``. On an H200, torch 2.11 with ``none`` was as far from float64 as with TF32.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    matmul.allow_tf32, cudnn.allow_tf32 = products, convolutions
    parts: list[tuple[Any, bool]] = [
        (matmul, products),
        *((getattr(cudnn, name, None), convolutions) for name in ("conv", "rnn")),
    ]
    for part, allowed in parts:
        if hasattr(part, "fp32_precision"):  # None, where torch has no newer way, has none
            part.fp32_precision = "tf32" if allowed else "ieee"


def convolution_error() -> dict[str, float]:
    """Relative L2 of a float32 convolution without TF32, against float64; ``ArithmeticError`` if it is that of TF32."""
    with torch.inference_mode(), tf32(False):
        x, weight = torch.randn(1, 64, 256, 256, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda")
        exact = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
        found = torch.nn.functional.conv2d(x, weight, padding=1).double()
    error = float((found - exact).norm() / exact.norm())
    if error > FLOAT32_ERROR:
        raise ArithmeticError(
            f"torch's float32 convolutions are off by {error:.1e}, expected below {FLOAT32_ERROR:.0e}: TF32 is on"
        )
    return {"relative_l2": error}


def timed_event() -> torch.cuda.Event:
    """An event that takes the time."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def event_seconds(work: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Seconds of each run by the GPU's own clock, after some to warm up."""
    for _ in range(WARM_UP):
        work()
    pairs = []
    for _ in range(repeats):
        before, after = timed_event(), timed_event()
        before.record()
        work()
        after.record()
        pairs.append((before, after))
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairs]


def copy_bandwidth() -> dict[str, float]:
    """Bytes per second of a copy inside device memory, read and written bytes together."""
    size = min(COPY_BYTES, torch.cuda.mem_get_info()[0] // 8)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = statistics.median(event_seconds(lambda: target.copy_(source)))
    return {"bytes_per_second": 2 * size / seconds, "bytes": 2 * size}


def matmul_rate(dtype: torch.dtype, allow_tf32: bool) -> dict[str, float]:
    """Floating-point operations per second of a square matrix product."""
    a, b = (torch.randn(SIZE, SIZE, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    with tf32(allow_tf32):
        seconds = statistics.median(event_seconds(lambda: torch.mm(a, b, out=out)))
    return {"flop_per_second": 2 * SIZE**3 / seconds, "size": SIZE}


def main() -> None:
    """Print what :func:`mrsep_deploy.bench.ceilings.ceilings_for` says of a GPU, as JSON."""
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    found = {
        "flop_per_second": {
            name: matmul_rate(kind, allow_tf32=False)["flop_per_second"] for name, kind in kinds.items()
        },
        "bytes_per_second": copy_bandwidth()["bytes_per_second"],
        "how": {
            "flop_per_second": f"torch's product of {SIZE} x {SIZE}, TF32 off, median of {REPEATS}",
            "bytes_per_second": f"copy inside device memory, read and written bytes, median of {REPEATS}",
        },
        "device": torch.cuda.get_device_name(0),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
