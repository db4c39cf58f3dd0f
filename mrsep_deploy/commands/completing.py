"""What a shell offers while a command line is typed, for arguments whose type does not say it.

``click.Path`` completes files by itself. Nothing heavy is imported, and no bundle is opened: a key is being waited for.
"""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem


def files(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders."""
    return [CompletionItem(incomplete, type="file")]


def folders(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders."""
    return [CompletionItem(incomplete, type="dir")]


def names(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of models; none if they cannot be read."""
    from mrsep_deploy.bundle import registry

    return _beginning(incomplete, registry.names)


def removable_names(
    _ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of models, without the one that comes with the package."""
    from mrsep_deploy.bundle import registry

    return _beginning(incomplete, registry.removable_names)


def models(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of models, and files and folders; bash offers these where no name begins so."""
    return [*files(ctx, parameter, incomplete), *names(ctx, parameter, incomplete)]


def gates(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The word that stands for no gate; the others are numbers."""
    return _beginning(incomplete, lambda: ["off"])


def _beginning(incomplete: str, known: Callable[[], list[str]]) -> list[CompletionItem]:
    from mrsep_deploy.errors import MrsepError

    try:
        return [CompletionItem(name) for name in known() if name.startswith(incomplete)]
    except MrsepError:
        return []
