"""The process that measures: every row in order, on from where an earlier process ended.

python -m acceptance.worker JOB.json
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from acceptance.rows import NO_GPU, Journal, Ledger, Unavailable, Values

EXPORT_SECONDS = 240.0


@dataclass(frozen=True)
class Job:
    """What the supervisor asks for."""

    journal: str
    deadline: float
    models: tuple[str, ...]
    batches: tuple[int, ...]
    bundles: str
    exports: bool
    compiles: bool = True

    @classmethod
    def read(cls, path: Path) -> Job:
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        )


def main(job: Job) -> int:
    try:
        import torch
    except (ImportError, OSError) as error:
        print(f"this Python has no torch that can be imported ({error}); run the python3 that holds it")
        return NO_GPU
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no GPU that it can use")
        return NO_GPU
    # NVIDIA's libraries read their environment when they are loaded, and an engine sets a variable there
    # (TF32); torch has to have its own before that.
    ones = torch.ones(1, 1, 64, 64, device="cuda")
    torch.nn.functional.conv2d(ones @ ones, ones)
    torch.cuda.synchronize()

    from mrsep_deploy.errors import EngineUnavailableError, UsageError

    ledger = Ledger(Journal(Path(job.journal)), job.deadline, (EngineUnavailableError, UsageError), _is_lost)
    _surroundings(ledger)
    rates = _ceilings(ledger)
    _device_checks(ledger)
    _models(ledger, job, rates)
    return 0


def _is_lost() -> bool:
    import torch

    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def _surroundings(ledger: Ledger) -> None:
    from acceptance import surroundings

    for name in ("gpu", "nvidia_smi", "software", "devices", "engines", "tensorrt"):
        ledger.measure("environment", name.replace("_", "-"), getattr(surroundings, name))


def _ceilings(ledger: Ledger) -> dict[str, float]:
    """Rates by name: ``bandwidth`` in bytes per second, the others in operations per second."""
    import torch

    from mrsep_deploy.bench.ceilings_cuda import convolution_error, copy_bandwidth, matmul_rate

    rates: dict[str, float] = {}
    copied = ledger.measure("ceilings", "device copy", copy_bandwidth)
    if copied is not None:
        rates["bandwidth"] = copied["bytes_per_second"]
    kinds = {
        "fp32 TF32 off": (torch.float32, False),
        "fp32 TF32 on": (torch.float32, True),
        "fp16": (torch.float16, False),
    }
    for name, kind in kinds.items():
        found = ledger.measure("ceilings", f"matmul {name}", functools.partial(matmul_rate, *kind))
        if found is not None:
            rates[name] = found["flop_per_second"]
    # The baseline is torch in float32: it has to be that.
    ledger.measure("ceilings", "convolution fp32 TF32 off", convolution_error)
    return rates


def _device_checks(ledger: Ledger) -> None:
    from acceptance.device_checks import CHECKS, Check
    from mrsep_deploy.devices import CUDA_PYTHON, PYCUDA, cuda_status, open_cuda
    from mrsep_deploy.devices.cuda import CudaDevice

    def run(check: Check, implementation: str) -> Values:
        status = cuda_status(implementation)
        if not status.works:
            raise Unavailable(status.reason, status.fix)
        device: CudaDevice = open_cuda(0, implementation)
        try:
            return check(device)
        finally:
            device.close()

    for implementation in (CUDA_PYTHON, PYCUDA):
        for name, check in CHECKS.items():
            ledger.measure(
                "device", f"{implementation}: {name}", functools.partial(run, check, implementation), 60.0
            )


def _models(ledger: Ledger, job: Job, rates: Mapping[str, float]) -> None:
    from acceptance.groups import UNTRAINED, Group, export_untrained, find_groups
    from acceptance.measure import measure_group

    folder = Path(job.bundles)
    if job.exports and "untrained" in job.models:
        for family in UNTRAINED:

            def work(family: str = family) -> Values:
                return {"bundles": [place.name for place in export_untrained(family, folder)]}

            ledger.measure("export", family, work, EXPORT_SECONDS)
    groups: list[Group] = []

    def find() -> Values:
        groups.extend(find_groups(folder, job.models, job.batches))
        if not groups:
            raise Unavailable(
                f"there is no bundle of {' or '.join(job.models)} models",
                "Make some with: gpu_acceptance.py prepare, and give their folder with --bundles.",
            )
        return {"groups": [group.name for group in groups]}

    ledger.measure("export", "bundles", find, again=True)
    for group in groups:
        measure_group(ledger, group, rates, job.compiles)


if __name__ == "__main__":
    sys.exit(main(Job.read(Path(sys.argv[1]))))
