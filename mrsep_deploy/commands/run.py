"""``mrsep-deploy run``: songs to stems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrsep_deploy.engines import AUTO, ENGINE_NAMES
from mrsep_deploy.errors import FAILED, PARTIAL, MrsepError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from mrsep_deploy.precision import AskedPrecision
    from mrsep_deploy.separator import Separator
    from mrsep_deploy.song import OutputOptions, SeparatedSong


DRAWN = 4
"""Segments in a timeline; more would be too narrow to read."""


@click.command(
    "run",
    epilog="""\b
Examples:
  mrsep-deploy run song.mp3
  mrsep-deploy run -n htdemucs -o stems --float32 one.flac two.flac
""",
)
@click.argument("tracks", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-n", "--model", metavar="NAME|PATH", help="Registered name or bundle; default: the last exported."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("separated"), show_default=True,
              help="Stems go to OUT/MODEL/TRACK/STEM.wav.")  # fmt: skip
@click.option("--engine", type=click.Choice([AUTO, *ENGINE_NAMES]), default=AUTO, show_default=True,
              help="What runs the model. A named engine that does not work here is an error.")  # fmt: skip
@click.option("--mode", type=click.Choice(["sequential", "concurrent", "graph"]), default="sequential",
              show_default=True,
              help="Branches one after the other, side by side, or (CUDA) as one captured graph.")  # fmt: skip
@click.option(
    "--overlap", type=float, default=0.25, show_default=True, help="Share of a segment that overlaps."
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0 for all.  [default: 0]"
)
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16", "mixed"]),
              help="Of the arithmetic; a float32 bundle is converted and kept in the cache.  "
                   "[default: the bundle's own]")  # fmt: skip
@click.option("--plan", type=click.Path(path_type=Path), metavar="FILE",
              help="For --precision mixed: what stays in float32 beyond the rules.")  # fmt: skip
@click.option("--int24", is_flag=True, help="Write 24-bit wav instead of 16-bit.")
@click.option("--float32", is_flag=True, help="Write 32-bit float wav instead of 16-bit.")
@click.option("--clip-mode", type=click.Choice(["rescale", "clamp", "none"]), default="rescale", show_default=True,
              help="What to do with stems beyond full scale.")  # fmt: skip
@click.option("--checkpoint", type=click.Path(path_type=Path),
              help="For --engine torch: the checkpoint, if it moved since the export.")  # fmt: skip
@click.option("--timeline", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Draw which stage of the first segments ran when on which stream, as SVG.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def run(
    tracks: tuple[Path, ...],
    model: str | None,
    out: Path,
    engine: str,
    mode: str,
    overlap: float,
    threads: int,
    precision: AskedPrecision | None,
    plan: Path | None,
    int24: bool,
    float32: bool,
    clip_mode: str,
    checkpoint: Path | None,
    timeline: Path | None,
    quiet: bool,
) -> None:
    """Separate songs into stems.

    Reads wav, flac, ogg, opus and mp3; m4a, mp4 and more with the extra mrsep-deploy[av]. Writes at the
    model's sample rate.
    """
    if int24 and float32:
        raise click.UsageError("--int24 and --float32 exclude each other")
    from mrsep_deploy.audio import WAV_16, WAV_24, WAV_FLOAT
    from mrsep_deploy.separator import Separator
    from mrsep_deploy.song import OutputOptions

    encoding = WAV_FLOAT if float32 else WAV_24 if int24 else WAV_16
    options = OutputOptions(out, encoding, clip_mode)  # type: ignore[arg-type]
    with Separator(
        model,
        engine=engine,
        threads=threads,
        overlap=overlap,
        mode=mode,  # type: ignore[arg-type]  # click has checked it
        checkpoint=checkpoint,
        precision=precision,
        plan=plan,
        trace=timeline is not None,
    ) as separator:
        _require_distinct(separator, tracks, options)
        if not quiet:
            _introduce(separator)
        failed = [
            track for track in tracks if not _separate(separator, track, options, quiet, len(tracks) > 1)
        ]
        if timeline is not None:
            _draw_timeline(separator, timeline)
    if failed:
        click.echo(f"{len(failed)} of {len(tracks)} failed: {', '.join(map(str, failed))}", err=True)
        raise SystemExit(PARTIAL if len(failed) < len(tracks) else FAILED)


def _require_distinct(separator: Separator, tracks: tuple[Path, ...], options: OutputOptions) -> None:
    """Refuse tracks whose stems would overwrite each other, before the first one is separated."""
    from mrsep_deploy.song import stem_folder

    taken: dict[Path, Path] = {}
    for track in tracks:
        folder = stem_folder(separator, track, options)
        if folder in taken:
            raise UsageError(
                f"{taken[folder]} and {track} would both be written to {folder}",
                "Rename one, or separate it in a run of its own with -o DIR.",
            )
        taken[folder] = track


def _introduce(separator: Separator) -> None:
    found = separator.engine.availability()
    click.echo(
        f"{separator.manifest.name} ({', '.join(separator.sources)}) on {separator.engine.title} "
        f"{found.version}, {found.device}"
        + (f" ({separator.engine_reason})" if separator.engine_reason else ""),
        err=True,
    )
    if separator.manifest.precision != "float32":
        how = separator.engine.emulation
        emulated = f", emulated: {separator.engine.title} computes it {how}" if how else ""
        click.echo(f"Precision: {separator.manifest.precision}{emulated}.", err=True)
    if not separator.manifest.model.trained:
        click.echo(
            "This model is untrained: its weights are random, and its stems are no separation of the song.",
            err=True,
        )


def _separate(separator: Separator, track: Path, options: OutputOptions, quiet: bool, several: bool) -> bool:
    """Separate one track; of several, a failing one is reported and the others go on."""
    try:
        song = _with_progress(separator, track, options, quiet)
    except MrsepError as error:
        if not several:
            raise
        click.echo(f"mrsep-deploy: {track}: {error}", err=True)
        return False
    if not quiet:
        time_taken = f"{song.seconds:.1f} s in {song.elapsed:.1f} s, {song.speed:.2f} x realtime"
        click.echo(f"{song.folder}{_stem_list(song)}  {time_taken}")
    return True


def _draw_timeline(separator: Separator, path: Path) -> None:
    from mrsep_deploy.atomic import write_file
    from mrsep_deploy.timeline import timeline_svg

    assert separator.scheduler.trace is not None
    events = [event for event in separator.scheduler.trace.events() if event.segment < DRAWN]
    write_file(path, timeline_svg(events).encode())


def _stem_list(song: SeparatedSong) -> str:
    return "/{" + ",".join(stem.path.stem for stem in song.stems) + "}.wav"


def _with_progress(separator: Separator, track: Path, options: OutputOptions, quiet: bool) -> SeparatedSong:
    from mrsep_deploy.song import separate_file

    if quiet:
        return separate_file(separator, track, options)
    with _bar() as bar:
        task = bar.add_task(track.name, total=None, speed="")
        rate = separator.sample_rate

        def report(done: int, total: int) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            speed = f"{done / rate / elapsed:.2f} x realtime" if elapsed else ""
            bar.update(task, completed=done, total=total, speed=speed)

        return separate_file(separator, track, options, report)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
