"""Reads energy counters where the hardware has them: RAPL for the processor, NVML for the GPU.

Both count the whole device with everything that runs on it, idling included; a figure is meaningful only on a
machine that does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
INSTALL_NVML = 'pip install "mrsep-deploy[bench]"'


@dataclass(frozen=True)
class Counter:
    """Joules since some moment; ``wraps`` is where it begins again, 0 for never."""

    read: Callable[[], float]
    wraps: float = 0.0

    def between(self, before: float, after: float) -> float:
        """Joules from one reading to a later one."""
        return after - before if after >= before or not self.wraps else after + self.wraps - before


@dataclass(frozen=True)
class Meter:
    """What can be read here.

    Attributes:
        source: what counts, for people.
        counters: to be added up; none if nothing counts.
        reason: why nothing does.
    """

    source: str
    counters: tuple[Counter, ...] = ()
    reason: str = ""

    def read(self) -> list[float]:
        """Readings of all counters, for :meth:`since`."""
        return [counter.read() for counter in self.counters]

    def since(self, before: list[float]) -> float | None:
        """Joules since these readings; None if nothing counts."""
        if not self.counters:
            return None
        return sum(c.between(b, c.read()) for c, b in zip(self.counters, before, strict=True))


def cpu_meter(folder: Path = POWERCAP) -> Meter:
    """RAPL of all processor packages."""
    if not folder.is_dir():
        return Meter("RAPL", reason=f"this system has no {folder}")
    zones = sorted(folder.glob("*rapl:?")) + sorted(folder.glob("*rapl:??"))
    packages = [zone for zone in zones if _text(zone / "name").startswith("package")]
    if not packages:
        return Meter("RAPL", reason=f"{folder} lists no processor package")
    try:
        counters = tuple(_rapl(zone) for zone in packages)
        for counter in counters:
            counter.read()
    except PermissionError:
        return Meter("RAPL", reason=f"only root may read {packages[0].name}/energy_uj here")
    except (OSError, ValueError) as error:
        return Meter("RAPL", reason=f"{packages[0].name} cannot be read ({error})")
    return Meter(f"RAPL, {len(packages)} package{'s' if len(packages) > 1 else ''}", counters)


def _rapl(zone: Path) -> Counter:
    energy, limit = zone / "energy_uj", zone / "max_energy_range_uj"
    return Counter(lambda: int(energy.read_text()) / 1e6, int(limit.read_text()) / 1e6)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def gpu_meter(index: int = 0) -> Meter:
    """NVML's count of a GPU's total energy."""
    library, reason = nvml()
    if library is None:
        return Meter("NVML", reason=reason)
    try:
        handle = library.nvmlDeviceGetHandleByIndex(index)
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception as error:  # NVML's own classes, which exist only where it is installed
        return Meter("NVML", reason=f"the driver does not count energy ({error})")
    return Meter(
        "NVML total energy",
        (Counter(lambda: float(library.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3),),
    )


def gpu_memory_used(index: int = 0) -> int | None:
    """Bytes in use on a GPU, by everybody; None where NVML does not tell."""
    library, _reason = nvml()
    if library is None:
        return None
    try:
        return int(library.nvmlDeviceGetMemoryInfo(library.nvmlDeviceGetHandleByIndex(index)).used)
    except Exception:  # as above
        return None


def nvml() -> tuple[Any, str]:
    """NVIDIA's management library, ready; or None and the reason."""
    try:
        import pynvml
    except ImportError:
        return None, f"nvidia-ml-py is not installed: {INSTALL_NVML}"
    try:
        pynvml.nvmlInit()
    except Exception as error:  # as above
        return None, f"the NVIDIA driver does not answer ({error})"
    return pynvml, ""
