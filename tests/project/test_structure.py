"""The structure that the README's layout promises, read from the code's own imports.

Rooms (packages) stand in layers, imports go down only, nothing goes in a circle, few modules lie in the package
root, and nothing outside ``export/families`` names a model family.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from mrsep_deploy.export.families import known_classes, variants

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "mrsep_deploy"
FOLDERS = {
    PACKAGE: ROOT / "mrsep_deploy",
    f"{PACKAGE}.export": ROOT / "export",
    f"{PACKAGE}.engines": ROOT / "engines",
}
"""Where the packages lie; two are mapped in pyproject.toml."""

LAYERS = (
    "errors",
    "process",
    "terminal",
    "files",
    "audio",
    "measuring",
    "devices",
    "bundle",
    "transforms",
    "precision",
    "export.checkpoint",
    "export.families",
    "export.graphs",
    "export",
    "fetching",
    "engines",
    "runtime",
    "testing",
    "separation",
    "songs",
    "inspection",
    "doctor",
    "verification",
    "evaluation",
    "bench",
    "pages",
    "commands",
    "__main__",
)
"""Rooms, the lowest first: a room imports only from rooms before it."""

ROOMS_OF_EXPORT = ("checkpoint", "families", "graphs")


@cache
def modules() -> Mapping[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            inner = path.relative_to(folder).with_suffix("").parts
            parts = inner[:-1] if inner[-1] == "__init__" else inner
            found[".".join((package, *parts))] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def imported(name: str) -> Iterator[str]:
    """The modules of the product that a module imports anywhere, also where only a type checker looks."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for each in node.names:
                whole = f"{node.module}.{each.name}"
                if whole in modules():
                    yield whole
                elif (
                    node.module in modules() and node.module != PACKAGE
                ):  # the root itself holds the version alone
                    yield node.module
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in modules() and each.name != PACKAGE)


@cache
def arrows() -> Mapping[str, frozenset[str]]:
    """What each module imports; the root's lazy members, imported for type checkers, are left out."""
    return {name: frozenset(imported(name)) - {name} for name in modules() if name != PACKAGE}


def room(name: str) -> str:
    parts = name.split(".")[1:]
    if parts[0] == "export" and parts[1:2] and parts[1] in ROOMS_OF_EXPORT:
        return ".".join(parts[:2])
    return parts[0]


def test_every_room_has_its_layer() -> None:
    assert {room(name) for name in arrows()} == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_imports_go_down(name: str) -> None:
    above = set(LAYERS[LAYERS.index(name) + 1 :])
    up = [
        f"{source} -> {target}"
        for source, targets in arrows().items()
        for target in targets
        if room(source) == name and room(target) in above
    ]
    assert not up


def test_no_file_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(arrows()[name] - {PACKAGE}):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(arrows()):
        visit(name, ())


def test_few_modules_lie_in_the_root() -> None:
    assert len(list(FOLDERS[PACKAGE].glob("*.py"))) <= 6


def _texts(module: ast.Module) -> Iterator[ast.Constant]:
    """Strings that the code computes with: no docstrings."""
    alone = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node


def test_nothing_outside_families_names_a_family() -> None:
    names = {*variants(), *known_classes()}
    found = [
        f"{name}: {node.value}"
        for name in modules()
        if room(f"{name}.x" if name == PACKAGE else name) != "export.families"
        for node in _texts(tree(name))
        if node.value in names
    ]
    assert not found
