"""``mrsep-deploy run``: songs to stems."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrsep_deploy.commands.options import takes
from mrsep_deploy.commands.run_options import RunOptions
from mrsep_deploy.commands.run_reports import (
    draw_timeline,
    introduce,
    objection,
    reporter_of,
    tell,
    tell_plan,
    write_summary,
)
from mrsep_deploy.errors import FAILED, UsageError, one_line
from mrsep_deploy.process.interrupts import breakable, last_words, protected

if TYPE_CHECKING:
    from mrsep_deploy.audio.write import AnyEncoding
    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.bundle.licence import Licence
    from mrsep_deploy.bundle.manifest import ModelInfo
    from mrsep_deploy.separation.bag import Bag, BagSeparator
    from mrsep_deploy.separation.separator import Separator
    from mrsep_deploy.songs.journal import Journal
    from mrsep_deploy.songs.outcome import Summary
    from mrsep_deploy.songs.tracks import Track
    from mrsep_deploy.songs.writing import WriteOptions
    from mrsep_deploy.terminal.progress import Reporter


@click.command(
    "run",
    epilog="""\b
Examples:
  mrsep-deploy run song.mp3
  mrsep-deploy run -n htdemucs -o stems --flac --int24 one.wav two.m4a
  mrsep-deploy run -r music --resume --mp3 --mp3-bitrate 192
  mrsep-deploy run "music/**/*.flac" --two-stems vocals --filename "{track} ({stem}).{ext}"
  mrsep-deploy run - -o - --stems vocals < song.wav > vocals.wav
""",
)
@takes(RunOptions)
def run(options: RunOptions) -> None:
    """Separate songs into stems.

    TRACKS are files, folders, patterns, or - for stdin. Reads wav, flac, ogg, opus and mp3; m4a, mp4 and
    more with the extra mrsep-deploy[av]. Without -n the model is the one chosen with models use, or else the one
    exported last or, before any export, a small one that comes with mrsep-deploy.
    """
    options.check()
    encoding = options.encoding()
    # what goes to stdout is a file first: its peak is known at its end
    temporary = tempfile.TemporaryDirectory(prefix="mrsep-deploy-stdout-") if options.to_stdout else None
    with protected(), temporary or contextlib.nullcontext(options.out) as root:
        _run(options, encoding, Path(root))


def _run(options: RunOptions, encoding: AnyEncoding, root: Path) -> None:
    from mrsep_deploy import __version__
    from mrsep_deploy.bundle.licence import require_commercial
    from mrsep_deploy.commands import output_files as kinds
    from mrsep_deploy.files.abandoned import sweep_parts
    from mrsep_deploy.songs.journal import Journal, settings_digest
    from mrsep_deploy.songs.naming import Naming, require_distinct
    from mrsep_deploy.songs.tracks import find_tracks
    from mrsep_deploy.songs.writing import WriteOptions
    from mrsep_deploy.terminal.progress import remark

    say = functools.partial(remark, quiet=options.quiet)
    tracks = find_tracks(options.tracks, options.recursive, None if options.to_stdout else root, say)
    if options.to_stdout and (problem := next(filter(None, (track.problem for track in tracks)), None)):
        raise problem
    if options.to_stdout and len(tracks) != 1:
        raise UsageError(f"stdout takes one song, there are {len(tracks)}", "Choose a folder with -o DIR.")
    model = _Model.open(options)
    if options.allow == "commercial":
        require_commercial(model.name, model.licence)
    naming = Naming(root, model.name, encoding.suffix.lstrip("."), options.filename)
    outputs = options.outputs(model.info.sources)
    made_by = one_line(f"mrsep-deploy {__version__}, model {model.name}, {model.licence.title}")
    how = (options.clip_mode, options.sample_rate, options.tags, made_by)
    files = WriteOptions(naming, outputs, encoding, *how)
    require_distinct(naming, tracks, outputs)
    stems = [path for track in tracks for path in naming.paths(track, outputs)]
    reports = [
        ("--summary", options.summary, kinds.SUMMARY),
        ("--timeline", options.timeline, kinds.TIMELINE),
    ]
    songs = [track.path for track in tracks if not track.is_stdin]
    inputs = (*songs, options.model, options.plan, options.checkpoint)
    kinds.check_output_files(reports, inputs, options.overwrite, stems, probe=not options.dry_run)
    journal = None
    if not options.to_stdout:  # for one song too: a later run over the folder knows by it what is a stem
        journal = Journal(naming.folder, settings_digest(_settings(options, model.digest, files)), root)
    if options.dry_run:
        raise SystemExit(tell_plan(options, tracks, files, journal))
    if options.resume:
        sweep_parts({path.parent for path in stems}, root)
    summary = _without_engine(options, model, tracks)
    if summary is None:
        summary = _with_engine(options, model, tracks, files, journal)
    if len(tracks) == 1 and summary.exit_code == FAILED:
        error = summary.outcomes[0].error
        assert error is not None
        raise error
    if options.to_stdout:
        with open(stems[0], "rb") as file, breakable():
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    if summary.exit_code:
        raise SystemExit(summary.exit_code)


def _with_engine(
    options: RunOptions, model: _Model, tracks: Sequence[Track], files: WriteOptions, journal: Journal | None
) -> Summary:
    """However it ends, by an interruption too, what became of every song is told."""
    from mrsep_deploy.separation.separator import Separator
    from mrsep_deploy.songs.outcome import Outcome, Summary
    from mrsep_deploy.songs.pipeline import Catalogue
    from mrsep_deploy.terminal.progress import late_progress

    wanted = {source for output in files.outputs for source in output.sources}

    def nothing_done() -> None:
        unfinished = tuple(Outcome(track, "unfinished") for track in tracks)
        write_summary(options.summary, Summary(unfinished, 0.0, interrupted=True), *model.named)

    with contextlib.ExitStack() as stack:
        try:
            quiet = options.quiet or options.json
            with last_words(nothing_done), late_progress(quiet) as report:
                separator = _separator(options, model, wanted, report)
                stack.callback(separator.close)
        except (KeyboardInterrupt, SystemExit):
            nothing_done()
            raise
        first = separator if isinstance(separator, Separator) else separator.first
        if not options.quiet and not options.json:
            introduce(model.name, first, model.licence, model.why, model.limits)
        with reporter_of(options, model.info.sample_rate, len(tracks) == 1) as reporter:
            reporter.begin(*model.named, first.engine_name, len(tracks))
            how = (options.resume, options.jobs, options.stdin_raw, options.allow_damaged)
            catalogue = Catalogue(separator, files, reporter, journal, *how)

            def as_far_as_it_came() -> None:
                catalogue.abandon()
                tell(options, reporter, catalogue.summary(), *model.named)

            try:
                with last_words(as_far_as_it_came):
                    summary = catalogue.run(tracks)
            except BaseException:
                tell(options, reporter, catalogue.summary(), *model.named)
                raise
            tell(options, reporter, summary, *model.named)
        if options.timeline is not None:
            draw_timeline(first, options.timeline)
    return summary


def _without_engine(options: RunOptions, model: _Model, tracks: Sequence[Track]) -> Summary | None:
    """What became of a run all of whose files are missing: no engine has to start to say so."""
    from mrsep_deploy.songs.outcome import Outcome, Summary

    failed = []
    for track in tracks:
        error = objection(track)
        if error is None:
            return None
        failed.append(Outcome(track, "failed", error=error))
    summary = Summary(tuple(failed), 0.0)
    with reporter_of(options, model.info.sample_rate, len(tracks) == 1) as reporter:
        reporter.begin(*model.named, None, len(tracks))
        for outcome in failed:
            reporter.ended(outcome)
        tell(options, reporter, summary, *model.named)
    return summary


@dataclass(frozen=True)
class _Model:
    """A bundle, or a bag of several.

    Attributes:
        why: why it is this one, if none was named.
        limits: what is known of what it cannot do.
    """

    name: str
    info: ModelInfo
    digest: str
    licence: Licence
    opened: Bundle | Bag
    why: str = ""
    limits: tuple[str, ...] = ()

    @classmethod
    def open(cls, options: RunOptions) -> _Model:
        from mrsep_deploy.bundle import Bundle, shipped
        from mrsep_deploy.bundle.bag_file import bag_in
        from mrsep_deploy.bundle.registry import default_bundle, resolve
        from mrsep_deploy.separation.bag import is_bag, open_bag

        verify = not options.dry_run
        if options.model is not None and is_bag(options.model):
            path, why = Path(options.model), ""
            bag_file: Path | None = path
        else:
            path, why = default_bundle() if options.model is None else (resolve(options.model), "")
            bag_file = bag_in(path)
        if bag_file is not None:
            bag = open_bag(bag_file, verify)
            return cls(bag.name, bag.bundles[0].manifest.model, bag.digest, bag.licence, bag, why)
        bundle = Bundle.open(path, verify=verify)
        limits = shipped.LIMITS if path == shipped.BUNDLE else ()
        manifest = bundle.manifest
        return cls(manifest.name, manifest.model, bundle.digest, manifest.licence, bundle, why, limits)

    @property
    def named(self) -> tuple[str, Licence]:
        """What reports say of it."""
        return self.name, self.licence


def _separator(
    options: RunOptions, model: _Model, wanted: set[int], report: Reporter
) -> Separator | BagSeparator:
    """Opens what separates the ``wanted`` sources."""
    from mrsep_deploy.separation.bag import Bag, BagSeparator
    from mrsep_deploy.separation.separator import Separator

    names = "engine threads overlap segment shifts seed device mode batch checkpoint precision plan gate"
    given: dict[str, Any] = {name: getattr(options, name) for name in names.split()}
    given |= {"lanes": options.lanes or 0, "trace": options.timeline is not None, "report": report}
    if isinstance(model.opened, Bag):
        return BagSeparator(model.opened, wanted, **given)
    return Separator(model.opened, **given)


def _settings(options: RunOptions, digest: str, writing: WriteOptions) -> dict[str, object]:
    """Returns everything that decides what a song's stems are: the model's digest; of a plan, what it says."""
    from mrsep_deploy.precision.plan import read_plan

    return {
        "model": digest,
        "precision": options.precision,
        "plan": None if options.plan is None else read_plan(options.plan).to_json(),
        # left out where it is not given, as older journals have it
        **({} if options.gate is None else {"gate": str(options.gate)}),
        "shifts": options.shifts,
        "seed": options.seed,
        "overlap": options.overlap,
        "segment": options.segment,
        "outputs": str(writing.outputs),
        "encoding": str(writing.encoding),
        "clip_mode": writing.clip,  # "clip" is of versions whose rescale gave each stem a gain of its own
        "sample_rate": writing.sample_rate,
        "tags": writing.tags,
        "template": writing.naming.template,
    }
