"""The line that makes a package of a training checkpoint, for the person whose checkpoint it is.

A training checkpoint holds the model's state beside the optimiser's, under a name of its author's choice, and
rarely says of which class the model is. The line takes the state out of it; the class and the arguments in it are
an example, and the person's to correct. The text of a file never becomes part of a command unless it is a plain
word: a name in a stranger's file could hold commands of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

USUAL = ("best_state", "state", "state_dict", "model_state_dict", "model_state", "model")
"""Names that training programs give to a model's state, those of the best state first."""

WITH_CONFIGURATION = (
    "if it was published with a configuration, give that, too: --config FILE.yaml; otherwise "
)
ADVICE = "make a package of it, with the class and the arguments of your model in place of these: "

_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,63}")
_PLACE = re.compile(r"[A-Za-z0-9_/.][A-Za-z0-9_/.+-]*")


def of_a_state(names: Iterable[object], path: Path) -> str:
    """The line for a file that holds a state with these names, and nothing else."""
    return WITH_CONFIGURATION + ADVICE + _line(str(path), "c", wrapper(names))


def of_a_training(states: Mapping[object, Iterable[object]], path: Path) -> str:
    """The line for a file that holds a model's state among other things.

    Args:
        states: every dict of tensors in it, by its key: the names of the tensors.
        path: the file.
    """
    key = next((key for key in USUAL if key in states), next(iter(states)))
    word = key if isinstance(key, str) and _WORD.fullmatch(key) else "KEY"
    return ADVICE + _line(str(path), f"c['{word}']", wrapper(states[key]))


def of_ones_own() -> str:
    """The line for a file with Python objects in it, which come to life when torch loads it."""
    return ADVICE + _line("FILE", f"next(c[k] for k in {USUAL} if c.get(k))", "", objects=True)


def _line(path: str, state: str, prefix: str, objects: bool = False) -> str:
    place = path if _PLACE.fullmatch(path) else "FILE"
    if prefix:
        state = f"{{k[{len(prefix)}:]: v for k, v in {state}.items()}}"
    return (
        f"python -c \"import sys, torch; c = torch.load(sys.argv[1], 'cpu', weights_only={not objects}); "
        "torch.save({'klass': 'demucs.htdemucs.HTDemucs', 'args': (), "
        "'kwargs': {'sources': ['drums', 'bass', 'other', 'vocals']}, "
        f"'state': {state}}}, sys.argv[2])\" {place} {Path(place).with_suffix('')}.package.th"
    )


def wrapper(names: Iterable[object]) -> str:
    """What a wrapper of the model puts before every name, such as ``module.``; else nothing."""
    parts = [str(name).partition(".") for name in names]
    nested = all(dot for _, dot, _ in parts) and len({first for first, _, _ in parts}) == 1
    return f"{parts[0][0]}." if nested else ""
