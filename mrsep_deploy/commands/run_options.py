"""The options of ``mrsep-deploy run``, and what they mean together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from mrsep_deploy.commands import completing, options
from mrsep_deploy.commands.options import CommaList, argument, flag, option
from mrsep_deploy.engines import AUTO, ENGINE_NAMES
from mrsep_deploy.errors import UsageError

if TYPE_CHECKING:
    from mrsep_deploy.audio.write import AnyEncoding, Clip
    from mrsep_deploy.precision.names import AskedPrecision
    from mrsep_deploy.runtime.schedule import Mode
    from mrsep_deploy.songs.loading import RawForm
    from mrsep_deploy.songs.stems import OtherMethod, Output
    from mrsep_deploy.songs.writing import RateChoice

FORMATS = ("flac", "mp3", "ogg", "raw")
DEPTHS = ("int24", "float32")
_RANK = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)


def _rate_choice(_ctx: click.Context, _option: click.Parameter, given: str) -> RateChoice:
    """``input``, ``model``, or a number of Hz."""
    if given == "input" or given == "model":
        return given  # type: ignore[return-value]  # mypy sees no literal in a comparison of strings
    if not given.isascii() or not given.isdigit() or not 1000 <= int(given) <= 1_000_000:
        raise click.BadParameter(f"{given!r} is not input, model or 1000 to 1000000 (Hz)")
    return int(given)


def _mp3_bitrate(ctx: click.Context, _option: click.Parameter, given: int) -> int:
    """One of the bit rates that MP3 has."""
    if ctx.resilient_parsing:  # a shell asks for completions, and waits
        return given
    from mrsep_deploy.audio.compress import MP3_BITRATES

    if given not in MP3_BITRATES:
        raise click.BadParameter(f"{given} is none of {', '.join(map(str, MP3_BITRATES))}")
    return given


def _raw_form(_ctx: click.Context, _option: click.Parameter, given: str | None) -> RawForm | None:
    """``44100:2:f32le`` -> what raw samples on stdin are."""
    if given is None:
        return None
    from mrsep_deploy.audio.encode import WAV_16, WAV_24, WAV_FLOAT
    from mrsep_deploy.songs.loading import RawForm

    encodings = {"s16le": WAV_16, "s24le": WAV_24, "f32le": WAV_FLOAT}
    rate, _, rest = given.partition(":")
    channels, _, name = rest.partition(":")
    if not (rate.isdigit() and channels.isdigit() and name in encodings):
        raise click.BadParameter(f"{given!r} is not of the form RATE:CHANNELS:{'|'.join(encodings)}")
    return RawForm(int(rate), int(channels), encodings[name])


@dataclass(frozen=True)
class RunOptions:
    """What the command line said: what is separated and with what, then what is written."""

    tracks: tuple[str, ...] = argument("TRACKS...", nargs=-1, required=True, shell_complete=completing.files)
    recursive: bool = flag("Take the folders in folders too.", "-r")
    allow_damaged: bool = flag(
        "Separate what is there of songs that are cut or damaged, and say so.  [default: they fail]"
    )
    model: str | None = options.model_name(
        "Registered name or bundle.  [default: the one of models use, or the last exported]",
        *("-n", "--model", "--name"),
    )
    engine: str = option(
        "What runs the model. A named engine that does not work here is an error.",
        type=click.Choice([AUTO, *ENGINE_NAMES]),
        default=AUTO,
    )
    device: str | None = option("Where.  [default: the engine's own]", "-d", metavar="cpu|cuda|cuda:N")
    mode: Mode | None = option(
        "Branches one after the other, side by side, or (TensorRT) as one captured graph.  "
        "[default: what build measured here, or sequential]",
        type=click.Choice(["sequential", "concurrent", "graph"]),
    )
    lanes: int | None = option(
        "CPU: segments side by side, each on its share of the threads.  "
        "[default: what build measured here, or 1]",
        type=click.IntRange(min=1),
        metavar="N",
    )
    batch: int | None = options.batch()
    shifts: int = option(
        "Separate N times, randomly shifted in time, and average: N times as long, a little better.",
        type=click.IntRange(min=0),
        default=0,
    )
    seed: int = option(
        "Of the shifts; they are the same for every song.", type=click.IntRange(min=0), default=0
    )
    overlap: float | None = options.overlap()
    segment: float | None = option(
        "Shorter segments than the bundle's, whose length is fixed: filled up with silence, so neither time "
        "nor memory is saved.",
        type=float,
        metavar="SECONDS",
    )
    no_split: bool = flag("", hidden=True)
    jobs: int = option(
        "Songs decoded ahead, and encoded, while others are separated.",
        "-j",
        type=click.IntRange(min=1, max=64),
        default=2,
    )
    threads: int = options.threads(help="CPU threads of the engine; 0 for all.  [default: 0]")
    precision: AskedPrecision | None = options.precision()
    plan: Path | None = options.plan()
    gate: float | None = options.gate()
    checkpoint: Path | None = options.checkpoint(
        help="For --engine torch: the checkpoint, if it moved since the export."
    )
    out: str = option(
        "Stems go to DIR/MODEL/TRACK/STEM.wav; one stem of one song can go to stdout (-).",
        "-o",
        default="separated",
        metavar="DIR|-",
        shell_complete=completing.folders,
    )
    filename: str = option(
        "Below DIR/MODEL, of {track}, {trackext}, {stem}, {ext}; with {model}, below DIR.",
        default="{track}/{stem}.{ext}",
        metavar="TEMPLATE",
    )
    stems: tuple[str, ...] | None = option(
        "Write these only.  [default: all]",
        type=CommaList("A,B,...", lambda name: name or None, "{text!r} is no list such as drums,bass"),
    )
    two_stems: str | None = option("Write STEM and the rest as no_STEM.", metavar="STEM")
    other_method: OtherMethod = option(
        "The rest is the other stems added, or, as minus_STEM, the song minus STEM, or is not written.",
        type=click.Choice(["add", "minus", "none"]),
        default="add",
    )
    int24: bool = flag("24 bits instead of 16.")
    float32: bool = flag("32-bit float instead of 16 bits.")
    flac: bool = flag("Write FLAC.")
    mp3: bool = flag("Write MP3.")
    ogg: bool = flag("Write Ogg Vorbis.")
    raw: bool = flag("Write samples without a header, little-endian, interleaved.")
    mp3_bitrate: int = option(
        "Constant bit rate, 64 to 320.",
        type=click.IntRange(64, 320),
        default=320,
        metavar="KBITS",
        callback=_mp3_bitrate,
    )
    ogg_quality: float = option("0 to 10.", type=click.FloatRange(0, 10), default=6.0)
    clip_mode: Clip = option(
        "What to do with stems beyond full scale: lower all stems of the song alike, lower each by itself "
        "as Demucs does, cut peaks off, or nothing.",
        type=click.Choice(["rescale", "rescale-each", "clamp", "none"]),
        default="rescale",
    )
    sample_rate: RateChoice = option(
        "Of the files: each song's own, or the model's.",
        default="input",
        metavar="input|model|HZ",
        callback=_rate_choice,
    )
    tags: bool = option("Carry over title, artist and the like.", "--tags/--no-tags", default=True)
    stdin_raw: RawForm | None = option(
        "What stdin is, if it has no header; FORMAT is s16le, s24le or f32le.",
        metavar="RATE:CHANNELS:FORMAT",
        callback=_raw_form,
    )
    resume: bool = flag("Leave out songs that an earlier run has finished.")
    dry_run: bool = flag("Print what would be written, and write nothing.")
    json: bool = flag("Print progress as one JSON object a line.")
    summary: Path | None = options.report_file("Write what became of every song, as JSON.")
    timeline: Path | None = options.report_file(
        "Draw which stage of the first segments ran when on which stream, as SVG."
    )
    overwrite: bool = options.overwrite()
    quiet: bool = options.quiet()

    @property
    def to_stdout(self) -> bool:
        return self.out == "-"

    def encoding(self) -> AnyEncoding:
        """The format of the files; raises ``click.UsageError`` where options exclude each other."""
        from mrsep_deploy.audio import compress, encode

        form, depth = _one_of(FORMATS), _one_of(DEPTHS)
        if depth and (form in ("mp3", "ogg") or (form, depth) == ("flac", "float32")):
            if click.get_current_context().get_parameter_source(depth) is ParameterSource.COMMANDLINE:
                instead = ", FLAC holds 16 or 24 bits" if form == "flac" else ""
                raise click.UsageError(f"--{depth} is not for --{form}{instead}")
            depth = None
        wav = {None: encode.WAV_16, "int24": encode.WAV_24, "float32": encode.WAV_FLOAT}[depth]
        raw = {None: encode.RAW_16, "int24": encode.RAW_24, "float32": encode.RAW_FLOAT}[depth]
        compressed = {
            "flac": compress.flac(24 if depth else 16),
            "mp3": compress.mp3(self.mp3_bitrate),
            "ogg": compress.ogg(self.ogg_quality),
        }
        return wav if form is None else raw if form == "raw" else compressed[form]

    def outputs(self, sources: Sequence[str]) -> tuple[Output, ...]:
        """The outputs of every song; raises ``UsageError`` where a stem does not exist, or stdout would get several."""
        from mrsep_deploy.songs.stems import choose_outputs

        kept = self.stems or ()
        if self.to_stdout and self.two_stems is not None and not kept:
            kept = (self.two_stems,)
        found = choose_outputs(sources, kept, self.two_stems, self.other_method)
        if self.to_stdout and len(found) != 1:
            names = ", ".join(output.name for output in found)
            raise UsageError(
                f"stdout takes one stem, there are {len(found)}: {names}", "Choose one with --stems."
            )
        return found

    def check(self) -> None:
        """Raises ``UsageError`` or ``click.UsageError`` for what cannot go together, whatever the model is."""
        if self.no_split:
            raise UsageError(
                "a bundle's graphs have one length, so songs are always split into segments of it",
                "Leave out --no-split; --overlap says how much segments overlap.",
            )
        if self.to_stdout and self.json:
            raise click.UsageError("-o - writes to stdout, where --json would write too")
        if self.to_stdout and self.resume:
            raise click.UsageError("-o - leaves nothing that --resume could find")


def _one_of(names: Sequence[str]) -> str | None:
    """The one flag that is set. The command line outweighs the environment, that the settings file."""
    ctx = click.get_current_context()
    for source in _RANK:
        here = [name for name in names if ctx.params[name] and ctx.get_parameter_source(name) is source]
        if len(here) > 1:
            raise click.UsageError(f"--{here[0]} and --{here[1]} exclude each other")
        if here:
            return here[0]
    return None
