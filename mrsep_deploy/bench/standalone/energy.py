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

    def since(self, before: float) -> float:
        """Joules since an earlier reading."""
        now = self.read()
        return now - before if now >= before or not self.wraps else now + self.wraps - before


@dataclass(frozen=True)
class Meter:
    """What can be read here: its name for people, counters to be added up, or the reason why there are none."""

    source: str
    counters: tuple[Counter, ...] = ()
    reason: str = ""

    def read(self) -> list[float]:
        """Readings of all counters, for :meth:`since`."""
        return [counter.read() for counter in self.counters]

    def since(self, before: list[float]) -> float | None:
        """Joules since these readings; None if nothing counts."""
        joules = [counter.since(each) for counter, each in zip(self.counters, before, strict=True)]
        return sum(joules) if joules else None


def cpu_meter(folder: Path = POWERCAP) -> Meter:
    """RAPL of all processor packages."""
    if not folder.is_dir():
        return Meter("RAPL", reason=f"this system has no {folder}")
    zones = [*sorted(folder.glob("*rapl:?")), *sorted(folder.glob("*rapl:??"))]
    packages = [zone for zone in zones if _is_package(zone)]
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


def _is_package(zone: Path) -> bool:
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False


def _rapl(zone: Path) -> Counter:
    energy, limit = zone / "energy_uj", zone / "max_energy_range_uj"
    return Counter(lambda: int(energy.read_text()) / 1e6, int(limit.read_text()) / 1e6)


def gpu_meter() -> Meter:
    """NVML's count of the first GPU's total energy."""
    library, reason = nvml()
    if library is None:
        return Meter("NVML", reason=reason)
    try:
        handle = library.nvmlDeviceGetHandleByIndex(0)
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception as error:  # NVML's own classes, which exist only where it is installed
        return Meter("NVML", reason=f"the driver does not count energy ({error})")
    counter = Counter(lambda: float(library.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3)
    return Meter("NVML total energy", (counter,))


def gpu_memory_used() -> int | None:
    """Bytes in use on the first GPU, by everybody; None where NVML does not tell."""
    library, _reason = nvml()
    if library is None:
        return None
    try:
        return int(library.nvmlDeviceGetMemoryInfo(library.nvmlDeviceGetHandleByIndex(0)).used)
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
