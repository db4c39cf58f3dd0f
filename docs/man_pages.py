"""Manual pages out of the commands' own help: ``python docs/man_pages.py`` writes docs/man."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from mrsep_deploy import __version__
from mrsep_deploy.commands.main import COMMANDS, PROGRAM, main

FOLDER = Path(__file__).parent / "man"


def pages() -> dict[str, str]:
    """The text of every page, by file name, in roff."""
    top = click.Context(main, info_name=PROGRAM, **main.context_settings)
    found = {f"{PROGRAM}.1": _page(top, main)}
    for name in COMMANDS:
        command = main.get_command(top, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=top)
        found[f"{PROGRAM}-{name}.1"] = _page(context, command)
        for inner, below in sorted(getattr(command, "commands", {}).items()):
            page = _page(click.Context(below, info_name=inner, parent=context), below)
            found[f"{PROGRAM}-{name}-{inner}.1"] = page
    return found


def _page(context: click.Context, command: click.Command) -> str:
    title = context.command_path.replace(" ", "-")
    paragraphs = cleandoc(command.help or "").replace("\b\n", "").split("\n\n")
    lines = [
        f'.TH "{title.upper()}" "1" "" "{PROGRAM} {__version__}" "{PROGRAM}"',
        ".SH NAME",
        f"{title} \\- {_plain(paragraphs[0]).rstrip('.')}",
        ".SH SYNOPSIS",
        f"\\fB{_plain(context.command_path)}\\fR {_plain(' '.join(command.collect_usage_pieces(context)))}",
        ".SH DESCRIPTION",
        *_separated(paragraphs),
        ".SH OPTIONS",
        *_options(context, command),
    ]
    if command is main:
        lines += [".SH COMMANDS", *(line for item in COMMANDS.items() for line in _item(*item))]
    lines += _examples(command)
    if command is not main:
        lines += [".SH SEE ALSO", f"\\fB{PROGRAM}\\fR(1)"]
    return "\n".join(lines) + "\n"


def _separated(paragraphs: list[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        yield ".PP"
        yield _plain(" ".join(paragraph.split()))


def _options(context: click.Context, command: click.Command) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            yield from _item(*record)


def _item(name: str, text: str) -> Iterator[str]:
    yield from (".TP", f"\\fB{_plain(name)}\\fR", _plain(" ".join(text.split())))


def _examples(command: click.Command) -> Iterator[str]:
    for block in (command.epilog or "").split("\b\n"):
        heading, _, rest = block.strip().partition(":\n")
        if heading.startswith("Example"):
            yield from (".SH EXAMPLES", ".nf", *(_plain(line.strip()) for line in rest.splitlines()), ".fi")
        elif block.strip():
            yield from (".PP", _plain(" ".join(block.split())))


def _plain(text: str) -> str:
    """Text in which roff sees nothing of its own."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
