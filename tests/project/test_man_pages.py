"""The manual: a page for every command, with every option, in roff that its formatter takes without a word."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "docs"))

import man_pages


def options(page: str) -> set[str]:
    """The lines that name an option."""
    lines = page.splitlines()
    return {lines[n + 1] for n, line in enumerate(lines[:-1]) if line == ".TP"}


def test_the_pages_in_the_folder_name_every_option() -> None:
    """``python docs/man_pages.py`` writes them anew."""
    made = man_pages.pages()
    assert sorted(path.name for path in man_pages.FOLDER.iterdir()) == sorted(made)
    for name, text in made.items():
        assert options((man_pages.FOLDER / name).read_text()) == options(text), name


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
@pytest.mark.parametrize("name", sorted(man_pages.pages()))
def test_pages_are_well_formed(name: str) -> None:
    text = man_pages.pages()[name]
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-Kutf8", "-ww", "-P-cbou"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if "preconv" in done.stderr or "can't find" in done.stderr or "cannot" in done.stderr:
        pytest.skip("groff is not whole here")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "EXAMPLES" in done.stdout
    assert "mrsep-deploy" in done.stdout
