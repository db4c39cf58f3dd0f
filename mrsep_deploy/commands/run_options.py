"""The options of ``mrsep-deploy run`` as one typed value, and what they mean together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from mrsep_deploy.errors import UsageError

if TYPE_CHECKING:
    from mrsep_deploy.audio.write import AnyEncoding, Clip
    from mrsep_deploy.precision.names import AskedPrecision
    from mrsep_deploy.runtime.schedule import Mode
    from mrsep_deploy.songs.loading import RawForm
    from mrsep_deploy.songs.stems import OtherMethod, Output
    from mrsep_deploy.songs.writing import RateChoice

STDOUT = "-"
FORMATS = ("flac", "mp3", "ogg", "raw")
DEPTHS = ("int24", "float32")
_RANK = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)


@dataclass(frozen=True)
class RunOptions:
    """What the command line said; names are those of the options."""

    tracks: tuple[str, ...]
    recursive: bool
    allow_damaged: bool
    model: str | None
    out: str
    filename: str
    engine: str
    device: str | None
    mode: Mode | None
    lanes: int | None
    shifts: int
    seed: int
    overlap: float | None
    segment: float | None
    no_split: bool
    jobs: int
    threads: int
    precision: AskedPrecision | None
    plan: Path | None
    stems: tuple[str, ...]
    two_stems: str | None
    other_method: OtherMethod
    int24: bool
    float32: bool
    flac: bool
    mp3: bool
    ogg: bool
    raw: bool
    mp3_bitrate: int
    ogg_quality: float
    clip_mode: Clip
    sample_rate: RateChoice
    tags: bool
    stdin_raw: RawForm | None
    resume: bool
    dry_run: bool
    json: bool
    summary: Path | None
    quiet: bool
    checkpoint: Path | None
    timeline: Path | None
    overwrite: bool

    @property
    def to_stdout(self) -> bool:
        return self.out == STDOUT

    def encoding(self, ctx: click.Context) -> AnyEncoding:
        """The format of the files.

        Raises:
            click.UsageError: options exclude each other.
        """
        from mrsep_deploy.audio import compress, encode

        form = one_of(ctx, FORMATS)
        depth = one_of(ctx, DEPTHS)
        if depth and (form in ("mp3", "ogg") or (form, depth) == ("flac", "float32")):
            if ctx.get_parameter_source(depth) is ParameterSource.COMMANDLINE:
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
        """The outputs of every song; to stdout, the one.

        Raises:
            UsageError: there is no such stem, or there are several for stdout.
        """
        from mrsep_deploy.songs.stems import choose_outputs

        kept = self.stems
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
        """Refuse what cannot go together, whatever the model is.

        Raises:
            UsageError, click.UsageError: options contradict each other.
        """
        if self.no_split:
            raise UsageError(
                "a bundle's graphs have one length, so songs are always split into segments of it",
                "Leave out --no-split; --overlap says how much segments overlap.",
            )
        if self.to_stdout and self.json:
            raise click.UsageError("-o - writes to stdout, where --json would write too")
        if self.to_stdout and self.resume:
            raise click.UsageError("-o - leaves nothing that --resume could find")


def one_of(ctx: click.Context, names: Sequence[str]) -> str | None:
    """The one flag that is set. The command line outweighs the environment, that the settings file.

    Raises:
        click.UsageError: two of the same place exclude each other.
    """
    given = [name for name in names if ctx.params[name]]
    for source in _RANK:
        here = [name for name in given if ctx.get_parameter_source(name) is source]
        if len(here) > 1:
            raise click.UsageError(f"--{here[0]} and --{here[1]} exclude each other")
        if here:
            return here[0]
    return None


def comma_list(_ctx: click.Context, _option: click.Parameter, given: str | None) -> tuple[str, ...]:
    """``drums, bass`` -> ``("drums", "bass")``."""
    names = tuple(name.strip() for name in (given or "").split(","))
    if given is not None and not all(names):
        raise click.BadParameter(f"{given!r} is no list such as drums,bass")
    return names if given is not None else ()


def rate_choice(_ctx: click.Context, _option: click.Parameter, given: str) -> RateChoice:
    """``input``, ``model``, or a number of Hz."""
    if given == "input" or given == "model":
        return given  # type: ignore[return-value]  # mypy sees no literal in a comparison of strings
    if not given.isascii() or not given.isdigit() or not 1000 <= int(given) <= 1_000_000:
        raise click.BadParameter(f"{given!r} is not input, model or 1000 to 1000000 (Hz)")
    return int(given)


def mp3_bitrate(ctx: click.Context, _option: click.Parameter, given: int) -> int:
    """One of the bit rates that MP3 has."""
    if ctx.resilient_parsing:  # a shell asks for completions, and waits
        return given
    from mrsep_deploy.audio.compress import MP3_BITRATES

    if given not in MP3_BITRATES:
        raise click.BadParameter(f"{given} is none of {', '.join(map(str, MP3_BITRATES))}")
    return given


def raw_form(_ctx: click.Context, _option: click.Parameter, given: str | None) -> RawForm | None:
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
