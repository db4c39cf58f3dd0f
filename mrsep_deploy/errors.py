"""Errors a user can act on, and the exit code each one ends the program with.

    MrsepError                       1   anything below; its message is one line that can stand alone
    ├── UsageError                   2   what was asked for does not exist or contradicts itself
    ├── CheckpointError              1   a checkpoint that cannot be read or does not fit its model
    │   └── UnsafeCheckpointError    1   a checkpoint that names code; nothing of it was run
    ├── ExportError                  1   a model that does not survive the way to a bundle
    ├── BundleError                  1   a bundle that is damaged, foreign or of another format version
    ├── FormatError                  1   a JSON file that is damaged or of another version: registry, side-car
    ├── AudioError                   1   audio that cannot be read
    ├── OutputError                  1   a result that cannot be written
    ├── FetchError                   1   a published file that cannot be had, or is another one
    ├── EvaluationError              1   separated music that cannot be scored
    └── EngineError                  1   an engine that failed while building or running a stage
        ├── EngineUnavailableError   1   an engine that is not installed or finds no device
        └── DeviceLostError          1   a GPU on which nothing of this process works any more

``PARTIAL`` (3) has no exception: some of several inputs failed, the others are done.

Every message says what was found and what was expected; ``fix`` says what to do. Errors of other
libraries are chained (``raise ... from``), never shown bare.
"""

from __future__ import annotations

DONE = 0
FAILED = 1
USAGE = 2
PARTIAL = 3


def one_line(text: str) -> str:
    """Text for a terminal: names of files may hold line breaks and what moves cursors or turns text around."""
    joined = " ".join(text.split())
    if joined.isprintable():
        return joined
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)


def first_line(error: BaseException, otherwise: str = "") -> str:
    """The first line of an error's message; of an empty one, ``otherwise`` or else the name of the error's type."""
    text = str(error).strip()
    return text.splitlines()[0] if text else otherwise or type(error).__name__


def named_line(error: BaseException) -> str:
    """The type of an error and the first line of its message: ``ValueError: ...``, or the type alone."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name


class MrsepError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: what was found and what was expected, one line, without a final full stop.
        fix: what to do about it, an imperative sentence or a command; may be empty.
    """

    exit_code = FAILED

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = one_line(message)
        self.fix = one_line(fix)

    def __str__(self) -> str:
        return f"{self.message}. {self.fix}" if self.fix else self.message


class UsageError(MrsepError):
    """The request itself is wrong: an unknown name, a value out of range, options that contradict."""

    exit_code = USAGE


class CheckpointError(MrsepError):
    """A checkpoint cannot be read, or its parameters do not fit the model it names."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint asks for code to be imported or called. Nothing of it has run."""


class ExportError(MrsepError):
    """A model cannot be turned into a bundle, or the result strays from PyTorch."""


class BundleError(MrsepError):
    """A bundle is missing, damaged, foreign, or written in a format this version does not read."""


class FormatError(MrsepError):
    """A JSON file is damaged or of another version, or holds a field that does not fit."""


class AudioError(MrsepError):
    """An audio file cannot be read."""


class OutputError(MrsepError):
    """A result cannot be written where it should go."""


class EvaluationError(MrsepError):
    """Separated music cannot be scored: a package is missing, or nothing could be read."""


class EngineError(MrsepError):
    """An engine failed while building or running a stage."""


class EngineUnavailableError(EngineError):
    """An engine was asked for by name and does not work here; ``fix`` is the line that installs it."""


class DeviceLostError(EngineError):
    """A kernel failed so that no later call on the GPU works in this process: the run ends with it."""


class FetchError(MrsepError):
    """A published file cannot be had, or is not the one that was published."""
