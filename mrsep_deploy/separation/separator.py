"""Separates songs into stems with a bundle on an engine."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mrsep_deploy.audio.blocks import Float32, first_nonfinite
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.registry import resolve
from mrsep_deploy.engines import AUTO
from mrsep_deploy.engines.choice import Choice, choices, parse_device
from mrsep_deploy.engines.contract import Engine, EngineOptions, Report
from mrsep_deploy.errors import UsageError
from mrsep_deploy.precision.names import AskedPrecision, arithmetic
from mrsep_deploy.precision.requested import in_precision, keeping
from mrsep_deploy.process.interrupts import breakable
from mrsep_deploy.runtime.plan import RunPlan
from mrsep_deploy.runtime.schedule import Mode
from mrsep_deploy.runtime.scheduler import Scheduler
from mrsep_deploy.separation.gate import GatedRuns, gate_of
from mrsep_deploy.separation.segments import SongStatistics, stride_of
from mrsep_deploy.separation.starting import start
from mrsep_deploy.separation.stream import Cutting, Runs, Separated, Song, SongStream, draw_leads, stems_of

_first_process: list[int] = []
"""The process in which music was separated first, if any has been: an inherited list tells a fork from it."""
_inherited: list[object] = []
"""What a forked process has of its parent's separators: sessions that were collected would wait for their threads."""


class Separator:
    """Separates songs with a bundle on an engine.

        with Separator("htdemucs", engine="ort") as separator:
            stems = separator.separate(mix)          # {"drums": [C, L], ...}

    A separator works on one song at a time, for one thread at a time; any other call meanwhile raises ``UsageError``.
    Several separators work in several threads. One that is never closed is closed when it is collected. After a fork
    neither an inherited separator nor a new one works.

    Args:
        bundle: an open bundle, its path, or its registered name; by default the one that run takes.
        engine: a name out of ``mrsep_deploy.engines.ENGINE_NAMES``, ``auto``, or an engine, which the
            separator then owns (``threads`` and ``checkpoint`` are for engines chosen by name).
        threads: CPU threads to use, 0 for all this process may use.
        overlap: share of a segment that the next one repeats, 0 to below 1; by default the model's own.
        segment: seconds of a segment, at most the model's own, which it is by default. The graphs have one
            length: a shorter segment is filled up with silence, and takes as long as a whole one.
        shifts: how often to separate each song, randomly shifted in time, for the average; 0 for once, unshifted.
        seed: of the shifts. Every song gets the same ones, whatever was separated before it.
        device: ``cpu``, ``cuda`` or ``cuda:1``; by default the engine's own.
        mode: how branches are scheduled, one of ``mrsep_deploy.runtime.schedule.MODES``; by default what
            ``mrsep-deploy build`` has found fastest here, or else ``sequential``.
        lanes: how many segments are computed side by side, each on its share of the threads; 0 for what
            ``build`` has found, or else one. For engines on a CPU.
        batch: segments in one run of every graph; by default the bundle's (:meth:`Bundle.at_batch`), mostly one.
        checkpoint: for the torch engine, the checkpoint if it has moved since the export.
        precision: one of ``mrsep_deploy.precision.names.ASKED``, by default the bundle's own. A float32 bundle is
            converted, once, and kept in the cache (``bundle`` then is that one).
        plan: for ``mixed``, the file of a plan.
        gate: burstiness above which segments run in float32 where the bundle is of lower precision; infinite for
            none. By default what a calibration has found (see ``mrsep_deploy.separation.gate``).
        report: told what is built before the first run on an engine that builds, how many are done and how many
            there are; by default a warning for each is logged.
        trace: note who runs when; ``scheduler.trace`` then tells where the last segment's time went.

    Raises:
        BundleError, EngineUnavailableError, UsageError: the bundle, the engine or a value is not usable.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str] | None = None,
        *,
        engine: Engine | str = AUTO,
        threads: int = 0,
        overlap: float | None = None,
        segment: float | None = None,
        shifts: int = 0,
        seed: int = 0,
        device: str | None = None,
        mode: Mode | None = None,
        lanes: int = 0,
        batch: int | None = None,
        checkpoint: Path | None = None,
        precision: AskedPrecision | None = None,
        plan: Path | None = None,
        gate: float | None = None,
        trace: bool = False,
        report: Report | None = None,
    ) -> None:
        if threads < 0:
            raise UsageError(f"{threads} threads were asked for", "Give 0 (all) or more.")
        self._occupancy = _Occupancy()
        given = bundle if isinstance(bundle, Bundle) else Bundle.open(resolve(bundle))
        with breakable():  # a conversion takes seconds, and leaves nothing half written
            self.bundle = in_precision(given, precision, plan)
        if batch is not None:
            self.bundle = self.bundle.at_batch(batch)
        self.manifest = self.bundle.manifest
        model = self.manifest.model
        self.sources, self.audio_channels = model.sources, model.audio_channels
        self.sample_rate = model.sample_rate
        self.overlap = self.manifest.application.overlap if overlap is None else overlap
        most = self.manifest.kept_samples
        longest = most / model.sample_rate
        if segment is not None and not self.manifest.takes_segment(segment):
            raise UsageError(f"segment is {segment:g} s; give more than 0 and at most {longest:g}")
        asked = most if segment is None else int(segment * model.sample_rate)
        self.segment_samples = min(asked, most)
        self.stride = stride_of(self.segment_samples, self.overlap)
        self.leads = draw_leads(shifts, self.sample_rate, random.Random(seed))
        kind, index = parse_device(device)
        options = EngineOptions(threads, checkpoint, arithmetic(self.manifest), index)
        self.gate = gate_of(self.manifest).burstiness if gate is None else gate
        gated = self.manifest.precision != "float32" and math.isfinite(self.gate)
        twin = self.bundle.twin if gated else None
        if isinstance(engine, Engine):
            named: Iterable[Choice] = [Choice(engine, "")]
        else:
            named = choices(engine, options, kind, captured=mode == "graph")
        free = given.manifest.precision == "float32" and plan is None
        kept = functools.partial(keeping, given, precision) if free else None
        started = start(named, self.bundle, twin, mode, lanes, trace, report, kept)
        self.bundle, self.manifest = started.bundle, started.bundle.manifest
        self.engine, self.engine_reason = started.engine, started.reason
        self.engine_name, self.scheduler = self.engine.name, started.scheduler
        self.run_plan = how = started.plan
        schedulers = [self.scheduler]
        self._runs: Runs = self.scheduler
        if gated:
            make = None if twin is None else functools.partial(_open_twin, twin, self.engine, how, schedulers)
            self._runs = GatedRuns(self.scheduler, self.gate, make)
        self._closing = weakref.finalize(self, _close, schedulers, self.engine, os.getpid())
        self._closing.atexit = False  # the system takes everything back faster

    def run_segments(self, segments: Float32) -> Float32:
        """One model call: segments ``[b, C, L]``, ``b`` at most the bundle's batch -> ``[b, S, C, L]``.

        The result is a view that the next call but one overwrites. There is no gate: all run in the precision
        of the bundle.
        """
        with self._occupancy.taken():
            return self.scheduler.run(segments)

    def separate(self, mix: Float32) -> dict[str, Float32]:
        """Separate a whole song held in memory.

        Args:
            mix: ``[C, L]`` at the model's sample rate, any length from one sample.

        Returns:
            A stem ``[C, L]`` for every source.

        Raises:
            UsageError: the mix has another shape, or holds NaN or infinity; the separator is at work or closed.
            EngineError: a stage failed.
        """
        mix = np.ascontiguousarray(mix, np.float32)
        if mix.ndim != 2 or mix.shape[0] != self.audio_channels or not mix.shape[1]:
            raise UsageError(
                f"the mix has the shape {list(mix.shape)}, expected [{self.audio_channels}, samples] with samples > 0"
            )
        stems = np.concatenate(list(self.separate_blocks(lambda: [mix])), axis=-1)
        return dict(zip(self.sources, stems, strict=True))

    def separate_blocks(
        self,
        blocks: Callable[[], Iterable[Float32]] | Iterable[Float32],
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Float32]:
        """Separate a song of any length in flat memory.

        Args:
            blocks: the song's blocks ``[C, n]`` in order, as a list or anything else that can be read twice, or a
                function that begins again: the song is read for its level, then to be separated.
            progress: called with the number of samples finished so far.

        Yields:
            Stems ``[S, C, n]`` in order, as soon as no later segment can change them.

        Raises:
            UsageError: the blocks can be read once only, have another shape, or hold NaN or infinity; the separator
                is at work or closed.
            EngineError: a stage failed.
        """
        if not callable(blocks) and iter(blocks) is blocks:
            raise UsageError(
                "the blocks are an iterator, which can be read once, and a song is read twice",
                "Give a list of blocks, or a function that begins again.",
            )

        def again() -> Iterator[Float32]:
            return self._checked(blocks() if callable(blocks) else blocks)

        song = Song(SongStatistics.measure(again()), again())
        done = 0
        for stems in stems_of(self.separate_songs([song])):
            done += stems.shape[-1]
            if progress is not None:
                progress(done)
            yield stems

    def _checked(self, blocks: Iterable[Float32]) -> Iterator[Float32]:
        done = 0
        for block in blocks:
            if block.ndim != 2 or block.shape[0] != self.audio_channels:
                raise UsageError(
                    f"a block has the shape {list(block.shape)}, expected [{self.audio_channels}, samples]"
                )
            if (place := first_nonfinite(block)) is not None:
                at = done + place
                raise UsageError(
                    f"the mix holds NaN or infinity at sample {at} ({at / self.sample_rate:.3f} s)",
                    "Mend or leave out those samples; every stem would be NaN.",
                )
            done += block.shape[1]
            yield block

    def separate_songs(self, songs: Iterable[Song | None]) -> Iterator[Separated]:
        """Separate songs one after the other without a pause between them, each in one pass over its blocks.

        See ``SongStream.run``. :func:`~mrsep_deploy.separation.stream.stems_of` takes the stems of a single song.
        """
        cutting = Cutting(self.segment_samples, self.stride, self.leads, self.manifest.application)
        stream = SongStream(self._runs, self.manifest.model, self.manifest.batch, cutting)
        with self._occupancy.taken():
            yield from stream.run(songs)

    def close(self) -> None:
        """Stop the streams; let go of the engine's sessions, of buffers and device. Idempotent."""
        self._occupancy.closed = True
        self._closing()

    def __enter__(self) -> Separator:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _open_twin(twin: Bundle, engine: Engine, how: RunPlan, schedulers: list[Scheduler]) -> Scheduler:
    """What runs segments in float32 beside the engine's lower precision; closed with the ``schedulers``."""
    scheduler = Scheduler(twin, engine.at_precision("fp32"), how.mode, how.lanes)
    schedulers.append(scheduler)
    return scheduler


def _close(schedulers: Sequence[Scheduler], engine: Engine, process: int) -> None:
    """Let go of everything. In a process that was forked off, the threads to be ended are not there."""
    if os.getpid() != process:
        _inherited.append((schedulers, engine))
        return
    with contextlib.ExitStack() as every:
        every.callback(engine.close)
        for scheduler in schedulers:
            every.callback(scheduler.close)


class _Occupancy:
    """Says whether a separator is at work, and where: its streams and buffers belong to one song's thread.

    Raises:
        UsageError: this process was forked from one that had made a separator. Threads of ONNX Runtime, OpenVINO and
            PyTorch do not survive a fork, and locks that they held stay locked: what uses them would hang.
    """

    def __init__(self) -> None:
        if not _first_process:
            _first_process.append(os.getpid())
        _require_first_process()
        self._lock = threading.Lock()
        self._owner = 0
        self.closed = False

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Be at work until the block ends.

        Raises:
            UsageError: the separator is at work already, closed, or was made before a fork.
        """
        _require_first_process()
        if self.closed:
            raise UsageError("this Separator is closed", "Make another one.")
        if not self._lock.acquire(blocking=False):
            if self._owner == threading.get_ident():
                raise UsageError(
                    "this Separator is at work on another song",
                    "Finish that song, or close its generator, first.",
                )
            raise UsageError("this Separator is at work in another thread", "Give each thread its own.")
        self._owner = threading.get_ident()
        try:
            yield
        finally:
            self._owner = 0
            self._lock.release()


def _require_first_process() -> None:
    if os.getpid() != _first_process[0]:
        raise UsageError(
            f"process {os.getpid()} was forked from process {_first_process[0]}, which had made a Separator before",
            'Make the first Separator after the fork, or start processes with multiprocessing\'s "spawn".',
        )
