"""``mrsep-deploy completion``: what makes a shell complete commands, options and models."""

from __future__ import annotations

import click

from mrsep_deploy.commands.main import main
from mrsep_deploy.commands.options import PROGRAM
from mrsep_deploy.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    epilog="""\b
Examples:
  mrsep-deploy completion bash >> ~/.bashrc
  mrsep-deploy completion zsh >> ~/.zshrc
  mrsep-deploy completion fish > ~/.config/fish/completions/mrsep-deploy.fish
""",
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands and options.

    Put it where the shell reads it when it starts, as in the examples. It works in a new shell.
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"click knows no shell {shell}", "Update click.")
    variable = f"_{PROGRAM.replace('-', '_').upper()}_COMPLETE"
    try:
        click.echo(found(main, {}, PROGRAM, variable).source())
    except (RuntimeError, OSError) as error:
        raise UsageError(f"{shell} cannot complete here: {error}", "Install a newer one.") from error
