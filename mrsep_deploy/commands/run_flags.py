"""The options of ``mrsep-deploy run`` as the command line shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from mrsep_deploy.commands import completing, run_options
from mrsep_deploy.commands.html_option import overwrite_option
from mrsep_deploy.commands.precision_options import converted_precision, plan_for_mixed
from mrsep_deploy.engines import AUTO, ENGINE_NAMES

Command = Callable[..., None]


def choosing(command: Command) -> Command:
    """Options of what is separated, and with what."""
    for add in reversed(
        (
            click.argument(
                "tracks", nargs=-1, required=True, metavar="TRACKS...", shell_complete=completing.files
            ),
            click.option("-r", "--recursive", is_flag=True, help="Take the folders in folders too."),
            click.option(
                "--allow-damaged",
                is_flag=True,
                help="Separate what is there of songs that are cut or damaged, and say so.  "
                "[default: they fail]",
            ),
            click.option(
                "-n",
                "--model",
                "--name",
                metavar="NAME|PATH",
                shell_complete=completing.models,
                help="Registered name or bundle.  [default: the one of models use, or the last exported]",
            ),
            click.option(
                "--engine",
                type=click.Choice([AUTO, *ENGINE_NAMES]),
                default=AUTO,
                show_default=True,
                help="What runs the model. A named engine that does not work here is an error.",
            ),
            click.option(
                "-d", "--device", metavar="cpu|cuda|cuda:N", help="Where.  [default: the engine's own]"
            ),
            click.option(
                "--mode",
                type=click.Choice(["sequential", "concurrent", "graph"]),
                help="Branches one after the other, side by side, or (TensorRT) as one captured graph.  "
                "[default: what build measured here, or sequential]",
            ),
            click.option(
                "--lanes",
                type=click.IntRange(min=1),
                metavar="N",
                help="CPU: segments side by side, each on its share of the threads.  "
                "[default: what build measured here, or 1]",
            ),
            click.option(
                "--shifts",
                type=click.IntRange(min=0),
                default=0,
                show_default=True,
                help="Separate N times, randomly shifted in time, and average: N times as long, a little better.",
            ),
            click.option(
                "--seed",
                type=click.IntRange(min=0),
                default=0,
                show_default=True,
                help="Of the shifts; they are the same for every song.",
            ),
            click.option(
                "--overlap",
                type=float,
                help="Share of a segment that overlaps.  [default: the model's, 0.25 mostly]",
            ),
            click.option(
                "--segment",
                type=float,
                metavar="SECONDS",
                help="Shorter segments than the bundle's, whose length is fixed: filled up with silence, "
                "so neither time nor memory is saved.",
            ),
            click.option("--no-split", is_flag=True, hidden=True),
            click.option(
                "-j",
                "--jobs",
                type=click.IntRange(min=1, max=64),
                default=2,
                show_default=True,
                help="Songs decoded ahead, and encoded, while others are separated.",
            ),
            click.option(
                "--threads",
                type=click.IntRange(min=0),
                default=0,
                help="CPU threads of the engine; 0 for all.  [default: 0]",
            ),
            converted_precision,
            plan_for_mixed,
            click.option(
                "--checkpoint",
                type=click.Path(path_type=Path),
                help="For --engine torch: the checkpoint, if it moved since the export.",
            ),
        )
    ):
        command = add(command)
    return command


def writing(command: Command) -> Command:
    """Options of what is written."""
    for add in reversed(
        (
            click.option(
                "-o",
                "--out",
                default="separated",
                show_default=True,
                metavar="DIR|-",
                shell_complete=completing.folders,
                help="Stems go to DIR/MODEL/TRACK/STEM.wav; one stem of one song can go to stdout (-).",
            ),
            click.option(
                "--filename",
                default="{track}/{stem}.{ext}",
                show_default=True,
                metavar="TEMPLATE",
                help="Below DIR/MODEL, of {track}, {trackext}, {stem}, {ext}; with {model}, below DIR.",
            ),
            click.option(
                "--stems",
                metavar="A,B,...",
                callback=run_options.comma_list,
                help="Write these only.  [default: all]",
            ),
            click.option("--two-stems", metavar="STEM", help="Write STEM and the rest as no_STEM."),
            click.option(
                "--other-method",
                type=click.Choice(["add", "minus", "none"]),
                default="add",
                show_default=True,
                help="The rest is the other stems added, or, as minus_STEM, the song "
                "minus STEM, or is not written.",
            ),
            click.option("--int24", is_flag=True, help="24 bits instead of 16."),
            click.option("--float32", is_flag=True, help="32-bit float instead of 16 bits."),
            click.option("--flac", is_flag=True, help="Write FLAC."),
            click.option("--mp3", is_flag=True, help="Write MP3."),
            click.option("--ogg", is_flag=True, help="Write Ogg Vorbis."),
            click.option(
                "--raw", is_flag=True, help="Write samples without a header, little-endian, interleaved."
            ),
            click.option(
                "--mp3-bitrate",
                type=click.IntRange(64, 320),
                default=320,
                show_default=True,
                metavar="KBITS",
                callback=run_options.mp3_bitrate,
                help="Constant bit rate, 64 to 320.",
            ),
            click.option(
                "--ogg-quality", type=click.FloatRange(0, 10), default=6.0, show_default=True, help="0 to 10."
            ),
            click.option(
                "--clip-mode",
                type=click.Choice(["rescale", "rescale-each", "clamp", "none"]),
                default="rescale",
                show_default=True,
                help="What to do with stems beyond full scale: lower all stems of the song alike, lower each "
                "by itself as Demucs does, cut peaks off, or nothing.",
            ),
            click.option(
                "--sample-rate",
                default="input",
                show_default=True,
                metavar="input|model|HZ",
                callback=run_options.rate_choice,
                help="Of the files: each song's own, or the model's.",
            ),
            click.option(
                "--tags/--no-tags",
                default=True,
                show_default=True,
                help="Carry over title, artist and the like.",
            ),
            click.option(
                "--stdin-raw",
                metavar="RATE:CHANNELS:FORMAT",
                callback=run_options.raw_form,
                help="What stdin is, if it has no header; FORMAT is s16le, s24le or f32le.",
            ),
            click.option("--resume", is_flag=True, help="Leave out songs that an earlier run has finished."),
            click.option("--dry-run", is_flag=True, help="Print what would be written, and write nothing."),
            click.option("--json", is_flag=True, help="Print progress as one JSON object a line."),
            click.option(
                "--summary",
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="Write what became of every song, as JSON.",
            ),
            click.option(
                "--timeline",
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="Draw which stage of the first segments ran when on which stream, as SVG.",
            ),
            overwrite_option,
            click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        )
    ):
        command = add(command)
    return command
