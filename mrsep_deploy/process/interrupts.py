"""Ctrl-C, SIGTERM and SIGHUP, delivered where the program can end cleanly.

Python raises ``KeyboardInterrupt`` between any two instructions: inside an import, which the library then reports
as "cannot be imported"; inside a progress bar that is half drawn; inside a thread that is half started, which
the interpreter then waits for at its end. The command line therefore keeps a signal until a place that expects it:

    install()               handles the signals; before a command begins, one ends the process at once
    raise_from_now_on()     raises them anywhere, as Python does
    with protected():       keeps a signal; breakable places inside it, or its end, raise it
    with breakable():       raises it at once: around waiting, and around work that may stop anywhere
    aside(function)         runs a function in a thread of its own, and waits breakably

SIGINT is raised as ``KeyboardInterrupt``, the others as ``SystemExit`` with the code that a shell reports. A signal
is raised once; after that the program has ``GRACE`` seconds to end, then it is ended, its last words said.

A program that uses this package as a library keeps its own handlers. Then nothing here does anything, but for
``aside``, which Python's own ``KeyboardInterrupt`` leaves by the same door.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

if TYPE_CHECKING:
    from types import FrameType

T = TypeVar("T")

GRACE = 3.0
"""Seconds from a signal to the end of a program that does not end by itself."""
LAST_WORDS_SECONDS = 1.0
"""Seconds that removing unfinished files and writing a summary may take then."""
ENDING = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
)
"""Signals that end a program: from a keyboard, from an administrator, from a terminal that closes."""

Mode = Literal["exit", "keep", "raise"]


class _State:
    """The signals of this process. Only its main thread writes here, where Python runs signal handlers."""

    def __init__(self) -> None:
        self.installed: list[int] = []
        self.mode: Mode = "exit"
        self.pending: int | None = None
        self.raised = False
        self.watching = False
        self.last_words: list[Callable[[], object]] = []


_state = _State()


def install() -> None:
    """Handle the signals that end a program, but for those that are ignored already: ``nohup`` is obeyed."""
    for number in ENDING:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        if signal.getsignal(number) in (usual, signal.SIG_DFL):
            signal.signal(number, _handle)
            _state.installed.append(number)


def raise_from_now_on() -> None:
    """Raise signals wherever the main thread is: for work that leaves nothing half done."""
    if _applies():
        _state.mode = "raise"


def uninstall() -> None:
    """Give the signals back to the system, whose own way to end a process is right once nothing is left to do."""
    for number in _state.installed:
        signal.signal(number, signal.SIG_DFL)
    _state.installed.clear()


def pending() -> int | None:
    """The signal that has arrived, or None; also when a library has swallowed its exception."""
    return _state.pending


def exit_code() -> int:
    """What a shell reports of a program that the pending signal ended."""
    return 128 + (_state.pending or 0)


@contextlib.contextmanager
def protected() -> Iterator[None]:
    """Keep signals that arrive; the end of the block raises one that no breakable place has raised."""
    if not _applies():
        yield
        return
    _watch()
    try:
        with _in_mode("keep"):
            yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        # A library that was interrupted raises something else: the signal is what happened.
        _raise_pending()
        raise
    _raise_pending()


@contextlib.contextmanager
def breakable() -> Iterator[None]:
    """Raise a signal that has arrived or arrives within the block, once; in any other thread, do nothing."""
    if not _applies():
        yield
        return
    with _in_mode("raise"):
        _raise_pending(again=False)
        yield
    _raise_pending(again=False)


@contextlib.contextmanager
def last_words(say: Callable[[], object]) -> Iterator[None]:
    """Call ``say`` if the program has to be ended within the block because it does not end by itself."""
    _state.last_words.append(say)
    try:
        yield
    finally:
        _state.last_words.remove(say)


def wait_for(event: threading.Event) -> None:
    """Wait for an event, breakably."""
    # On Windows a wait without end does not let Python see a signal.
    slice_seconds = 0.2 if os.name == "nt" else None
    with breakable():
        while not event.wait(slice_seconds):
            pass


def aside(function: Callable[[], T]) -> T:
    """Return or raise what a function does in a thread of its own, where no signal is ever raised.

    An interrupt leaves the thread alone. It is a daemon thread, which the interpreter does not wait for at its
    end; an executor of the standard library would be waited for, without end if the interrupt fell into its start.
    """
    done = threading.Event()
    found: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(function())
        except BaseException as error:  # raised again in the thread that waits
            failed.append(error)
        finally:
            done.set()

    threading.Thread(target=work, name="aside", daemon=True).start()
    wait_for(done)
    if failed:
        raise failed[0]
    return found[0]


def _applies() -> bool:
    return bool(_state.installed) and threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def _in_mode(mode: Mode) -> Iterator[None]:
    before = _state.mode
    _state.mode = mode
    try:
        yield
    finally:
        _state.mode = before


def _raise_pending(again: bool = True) -> None:
    if _state.pending is None or (_state.raised and not again):
        return
    _state.raised = True
    if _state.pending == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(exit_code())


def _handle(number: int, _frame: FrameType | None) -> None:
    if _state.pending is None:
        _state.pending = number
    if _state.mode == "exit":
        _end()
    elif _state.mode == "raise":
        _raise_pending(again=not _state.watching)


# --- a program that does not end by itself


def _watch() -> None:
    """Start the thread that ends the program, once. The system writes every signal's number into its pipe."""
    if _state.watching or os.name == "nt":
        return
    _state.watching = True
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end_after_grace, args=(reading,), name="signals", daemon=True).start()


def _end_after_grace(reading: int) -> None:
    while (number := os.read(reading, 1)[0]) not in _state.installed:
        pass
    threading.Event().wait(GRACE)
    _state.pending = _state.pending or number  # the main thread may be inside a library that never came back

    def say_last_words() -> None:
        for say in reversed(_state.last_words):
            with contextlib.suppress(Exception):
                say()

    saying = threading.Thread(target=say_last_words, daemon=True)
    saying.start()
    saying.join(LAST_WORDS_SECONDS)
    _end()


def _end() -> NoReturn:
    """End the process now, without the interpreter's own end, which would wait for threads."""
    with contextlib.suppress(Exception):
        os.write(2, b"interrupted\n")
    os._exit(exit_code())


def leave() -> NoReturn:
    """End an interrupted program whose cleaning up is done: threads may still be inside libraries."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(exit_code())
