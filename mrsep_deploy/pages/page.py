"""Blocks to HTML, by a template."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from mrsep_deploy.errors import OutputError
from mrsep_deploy.pages.blocks import Page

if TYPE_CHECKING:
    from jinja2 import Template

INSTALL = 'Run pip install "mrsep-deploy[report]"'


def require_templates() -> None:
    """Raise before anything is measured, not after it, where a page cannot be made.

    Raises:
        OutputError: jinja2 is not installed.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise OutputError("--html needs the package jinja2, not installed here", INSTALL)


def render(page: Page) -> str:
    """The page as HTML, UTF-8, with all that it needs in itself; what UTF-8 cannot hold becomes a question mark.

    Raises:
        OutputError: jinja2 is not installed.
    """
    require_templates()
    made = _template().render(page=page, style=_file("style.css")).rstrip() + "\n"
    return made.encode("utf-8", "replace").decode("utf-8")


@cache
def _template() -> Template:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _file(name: str) -> str:
    return resources.files("mrsep_deploy.pages").joinpath(name).read_text(encoding="utf-8")
