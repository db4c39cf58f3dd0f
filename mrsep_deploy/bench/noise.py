"""Measures whether the machine was quiet: what other processes did on it, and whether it slowed down.

    others    CPU cores that were busy with something else: all busy time of ``/proc/stat`` less our own
              processes' CPU time, over the wall time
    steal     share of the time the hypervisor gave to somebody else (``/proc/stat``)
    quota     seconds this container was stopped because its CPU quota was used up (``cpu.stat``)
    throttled times a core or package was slowed because it was hot (``thermal_throttle``)
    clock     how far the cores' clock fell below its greatest value (``cpufreq``)
    drift     how much slower the later half of the rounds was than the earlier; said where it is more than the
              rounds of a half differ among themselves

A figure that the system does not report is None, and no remark is made about it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

from mrsep_deploy.measuring.statistics import drift, drifted

OTHERS_CORES = 0.1
"""Busy cores of others above which a machine is not quiet: system services of an idle one take a few percent."""
STEAL_SHARE = 0.01
DRIFT_SHARE = 0.05
LOAD = 0.5
"""Load average before the start above which something was running, or had been just before."""
CLOCK_SHARE = 0.9

Told = TypeVar("Told")


class Snapshot(NamedTuple):
    """Counters at one moment; None for what the system does not tell."""

    at: float
    own_seconds: float
    load: float | None = None
    busy_seconds: float | None = None
    steal_seconds: float | None = None
    total_seconds: float | None = None
    quota_seconds: float | None = None
    throttles: int | None = None
    clock: float | None = None


def snapshot(own_seconds: float, root: Path = Path("/")) -> Snapshot:
    """Read everything; ``own_seconds`` of CPU time have this program's processes used so far.

    ``root`` is that of the file system, where another one is looked at.
    """
    cpus = root / "sys/devices/system/cpu"
    busy, steal, total = _told(lambda: _stat(root / "proc/stat")) or (None, None, None)
    return Snapshot(
        at=time.perf_counter(),
        own_seconds=own_seconds,
        load=_told(lambda: float((root / "proc/loadavg").read_text().split()[0])),
        busy_seconds=busy,
        steal_seconds=steal,
        total_seconds=total,
        quota_seconds=_told(lambda: _quota(root / "sys/fs/cgroup/cpu.stat")),
        throttles=_told(lambda: sum(_numbers(cpus, "thermal_throttle/core_throttle_count"))),
        clock=_told(lambda: _clock(cpus)),
    )


def _told(read: Callable[[], Told]) -> Told | None:
    """What a reader returns; None where the system does not tell it."""
    try:
        return read()
    except (OSError, ValueError, IndexError, KeyError, AttributeError, ZeroDivisionError):
        return None


def _stat(path: Path) -> tuple[float, float, float]:
    """Busy, stolen and total CPU seconds since the system started, over all cores (``man 5 proc``)."""
    fields = path.read_text().splitlines()[0].split()
    # Guests' time is contained in user and nice already.
    user, nice, system, idle, wait, hard, soft, steal = (int(field) for field in fields[1:9])
    tick = float(os.sysconf("SC_CLK_TCK"))
    busy = user + nice + system + hard + soft
    return busy / tick, steal / tick, (busy + idle + wait + steal) / tick


def _quota(path: Path) -> float:
    """Seconds this control group was stopped for its quota (cgroup v2)."""
    lines = dict(line.split() for line in path.read_text().splitlines())
    return int(lines["throttled_usec"]) / 1e6


def _numbers(cpus: Path, name: str) -> list[int]:
    """A file's number for each core; ``OSError`` where no core has the file."""
    found = [int(path.read_text()) for path in cpus.glob(f"cpu[0-9]*/{name}")]
    if not found:
        raise FileNotFoundError(name)
    return found


def _clock(cpus: Path) -> float:
    """Mean of the cores' clocks over the mean of their greatest."""
    now, most = _numbers(cpus, "cpufreq/scaling_cur_freq"), _numbers(cpus, "cpufreq/cpuinfo_max_freq")
    return fmean(now) / fmean(most)


@dataclass(frozen=True)
class Noise:
    """What happened between two moments; the module says what each figure means."""

    load_before: float | None
    load_after: float | None
    others_cores: float | None
    steal_share: float | None
    quota_seconds: float | None
    throttles: int | None
    clock_share: float | None
    drift: Mapping[str, float]
    remarks: tuple[str, ...]

    @property
    def quiet(self) -> bool:
        """Nothing was found that makes the times doubtful."""
        return not self.remarks

    def plain(self) -> dict[str, object]:
        """Returns the fields as JSON has them."""
        return {**asdict(self), "remarks": list(self.remarks), "quiet": self.quiet}


def noise_between(
    before: Snapshot, after: Snapshot, times: Mapping[str, Sequence[float]] | None = None
) -> Noise:
    """What the counters of two moments say, and the times of the rounds between them, by contender."""
    wall, own, _, busy, steal, total, quota, throttles, _ = (
        None if first is None or then is None else max(0.0, then - first)
        for first, then in zip(before, after, strict=True)
    )
    assert wall is not None
    assert own is not None
    drifts = {name: drift(values) for name, values in (times or {}).items()}
    found = Noise(
        load_before=before.load,
        load_after=after.load,
        others_cores=None if busy is None else max(0.0, busy - own) / max(wall, 1e-9),
        steal_share=steal / total if steal is not None and total else None,
        quota_seconds=quota,
        throttles=None if throttles is None else round(throttles),
        clock_share=after.clock,
        drift={name: value for name, value in drifts.items() if value is not None},
        remarks=(),
    )
    told = [name for name, values in (times or {}).items() if drifted(values)]
    return replace(found, remarks=tuple(_remarks(found, told)))


def _remarks(found: Noise, drifting: Sequence[str]) -> Iterator[str]:
    if found.load_before is not None and found.load_before > LOAD:
        yield f"the load average was {found.load_before:.2f} before the start"
    if found.others_cores is not None and found.others_cores > OTHERS_CORES:
        yield f"other processes kept {found.others_cores:.2f} CPU cores busy meanwhile"
    if found.steal_share is not None and found.steal_share > STEAL_SHARE:
        yield f"the hypervisor gave {found.steal_share:.1%} of the CPU time to others"
    if found.quota_seconds:
        yield f"the container's CPU quota stopped it for {found.quota_seconds:.2f} s"
    if found.throttles:
        yield f"the processor was throttled for heat {found.throttles} times"
    if found.clock_share is not None and found.clock_share < CLOCK_SHARE:
        yield f"the clock was at {found.clock_share:.0%} of its greatest value"
    for name in drifting:
        value = found.drift[name]
        if abs(value) > DRIFT_SHARE:
            how = "slower" if value > 0 else "faster"
            yield f"{name} was {abs(value):.0%} {how} in the later half of the rounds"


def rough(noise: Mapping[str, Any], cores: int) -> str:
    """One line for times from a machine that was not quiet: its noise, with remarks, as plain values; its cores."""
    load = noise["load_before"]
    if load is not None and load > LOAD:
        what = f"busy (load {load:.3g} on {cores} core{'' if cores == 1 else 's'})"
    else:
        what = f"not steady ({noise['remarks'][0]})"
    return f"The machine was {what}: treat these times as rough"
