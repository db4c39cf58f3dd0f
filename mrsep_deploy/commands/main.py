"""The command ``mrsep-deploy``: finds the subcommand, and turns errors into one line and an exit code.

Nothing heavy is imported before a subcommand runs, so that help and completion are instant.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from mrsep_deploy import __version__
from mrsep_deploy.commands.options import ARGUMENTS, PROGRAM
from mrsep_deploy.errors import FAILED, MrsepError, OutputError, UsageError, first_line
from mrsep_deploy.process import interrupts
from mrsep_deploy.process.muted import separate_stderr
from mrsep_deploy.terminal.stdout import explained_stdout

DEBUG_VARIABLE = "MRSEP_DEPLOY_DEBUG"
INTERRUPTED = 130
"""What a shell reports of a program that Ctrl-C ended: 128 + SIGINT."""

COMMANDS = {
    "fetch": "Get a published model by its name.",
    "export": "Turn a trained checkpoint into a bundle.",
    "run": "Separate songs into stems.",
    "models": "List, show, choose and remove exported models.",
    "inspect": "Show what a bundle or a checkpoint is made of.",
    "complexity": "Count parameters, multiply-accumulates and activations.",
    "verify": "Compare what an engine computes with what the model should.",
    "bench": "Measure how fast models run on each engine.",
    "eval": "Measure the SDR of a model on tracks with known stems.",
    "build": "Build a bundle's engines ahead of time.",
    "cache": "List and delete built engines and all else in the cache.",
    "doctor": "Show which engines work here, and what to do about the others.",
    "completion": "Print what makes a shell complete commands and options.",
}
"""Each is the click command of that name in ``mrsep_deploy.commands``; the text is its short help."""
KEEPING = ("run",)
"""Commands that keep signals for places of their own; the others are interrupted anywhere."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            with explained_stdout():
                return super().main(*args, **extra)
        except OutputError as error:  # of --help and --version, which are printed before a command is invoked
            click.echo(f"{PROGRAM}: error: {error}", err=True)
            sys.exit(error.exit_code)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = tuple(args)  # reports say what was typed
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"mrsep_deploy.commands.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        found = super().resolve_command(ctx, args)
        if found[0] not in KEEPING:
            interrupts.raise_from_now_on()
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        from mrsep_deploy.files import paths

        separate_stderr()  # what libraries print can be dropped
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="replace")  # characters that the terminal's encoding lacks are a ?
        try:
            ctx.default_map = self._settings(ctx)
            with contextlib.suppress(UsageError):  # no home, no cache
                # PyTorch makes a folder for its compiler among the temporary files, unless it has another
                os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(paths.cache_dir("torch")))
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own business
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            if interrupts.pending() is not None:  # what an interrupted library makes of it
                click.echo("interrupted", err=True)
                ctx.exit(interrupts.exit_code())
            if ctx.params["debug"]:
                traceback.print_exc()
            message = str(error)
            if not isinstance(error, MrsepError):
                what = f"{type(error).__name__}: {first_line(error, 'no message')}"
                message = f"{what}. This is a bug; {DEBUG_VARIABLE}=1 shows where"
            click.echo(f"{PROGRAM}: error: {message}", err=True)
            ctx.exit(error.exit_code if isinstance(error, MrsepError) else FAILED)

    def _settings(self, ctx: click.Context) -> dict[str, Any] | None:
        """What the settings file says; the user's own need not exist."""
        from mrsep_deploy.commands.settings import read_settings
        from mrsep_deploy.files import paths

        path = ctx.params["config"]
        if path is None:
            try:
                path = paths.config_file()
            except UsageError:  # no home, no settings
                return None
            if not path.exists():
                return None
        return read_settings(path, lambda name: self.get_command(ctx, name))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MRSEP_DEPLOY"},
    epilog=f"""\b
Examples:
  {PROGRAM} fetch htdemucs
  {PROGRAM} run song.mp3
  {PROGRAM} COMMAND --help
\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some of several inputs failed.
""",
)
@click.option(
    "--debug", is_flag=True, envvar=DEBUG_VARIABLE, show_envvar=True, help="Show tracebacks of errors."
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    show_envvar=True,
    help="Settings: options by their long names, in TOML, below [COMMAND].  "
    "[default: config.toml in the user's folder of settings]",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def main(debug: bool, config: Path | None) -> None:
    """Trained music-separation models out of PyTorch and into production."""
