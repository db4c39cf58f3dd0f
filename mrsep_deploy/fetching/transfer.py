"""One file from an address: received in pieces, gone on with where an earlier attempt stopped.

The only module that opens a connection. Redirects, proxies, TLS and its certificates are the package requests'
affair; what arrives is not believed before its hash has been compared (``download``).
"""

from __future__ import annotations

import importlib.util
import os
import re
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from mrsep_deploy import __version__
from mrsep_deploy.errors import FetchError, OutputError
from mrsep_deploy.files.parts import explained

if TYPE_CHECKING:
    import requests

Tell = Callable[[int], None]
"""Called with how many bytes of a file are there."""

CONNECT_SECONDS = 15.0
READ_SECONDS = 30.0
"""A connection through which nothing comes for so long is given up."""
TRIES = 3
"""Attempts in a row that bring nothing new before it is given up."""
PAUSE = 1.0
"""Seconds before the second attempt; one more before each further one."""
CHUNK = 2**16

INSTALL = 'pip install "mrsep-deploy[fetch]"'
ELSEWHERE = "Check the connection, or get the file on another machine and give its folder: --from DIR."
AGAIN = "Give the same command again: it goes on where it stopped."

_RANGE = re.compile(r"bytes (\d+)-")
_TOTAL = re.compile(r"/(\d+)\s*$")
_NO_SUCH_RANGE = 416
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers of a server that may be others in a moment."""


def require_requests() -> None:
    """Raise ``FetchError`` with the line that installs the extra, unless it is there."""
    if importlib.util.find_spec("requests") is None:
        raise FetchError(
            "fetching from the network needs the package requests, not installed here",
            f"Run {INSTALL}, or give a folder that has the files: --from DIR.",
        )


class _Interrupted(Exception):
    """An attempt ended early; another one may bring the rest."""


def receive(address: str, part: Path, size: int, tell: Tell) -> None:
    """Receives a file of ``size`` bytes into ``part``, which may hold its beginning already.

    Raises:
        FetchError: it is not there, cannot be reached, breaks off again and again, or is larger. What came of it
            stays in ``part``, unless it is larger.
        OutputError: it cannot be written; nothing of it stays.
    """
    most, failures, title = size_of(part), 0, shown(address)
    try:
        while size_of(part) < size:  # what is whole may still be another file: its hash tells
            why = _interruption(address, part, size, tell)
            if not why:
                return
            failures = 0 if size_of(part) > most else failures + 1
            most = max(most, size_of(part))
            if failures >= TRIES:
                kept = size_of(part)
                got = f" after {kept} of {size} bytes" if kept else ""
                raise FetchError(f"{title} cannot be had{got}: {why}", AGAIN if kept else ELSEWHERE)
            time.sleep(PAUSE * failures)
    except OutputError:
        discard(part)
        raise


def _interruption(address: str, part: Path, size: int, tell: Tell) -> str:
    """Makes one attempt, and returns why it ended early; nothing if it did not."""
    try:
        _attempt(address, part, size, tell)
    except _Interrupted as why:
        return str(why)
    return ""


def _attempt(address: str, part: Path, size: int, tell: Tell) -> None:
    """One request for what is missing."""
    import requests

    have = size_of(part)
    headers = {"User-Agent": f"mrsep-deploy/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    timeouts = (CONNECT_SECONDS, READ_SECONDS)
    try:
        with requests.get(address, headers=headers, stream=True, timeout=timeouts) as answer:
            _check(answer, shown(address))
            _require_size(answer, size, shown(address))
            _store(answer, part, _start(answer, part), size, tell, shown(address))
    except (requests.TooManyRedirects, ValueError) as error:
        # what requests says of addresses that are none is a ValueError, too
        raise FetchError(f"{shown(address)} cannot be had: {_reason(error)}", ELSEWHERE) from error
    except requests.RequestException as error:
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
            raise FetchError(f"{shown(address)} cannot be had: {_reason(error)}", ELSEWHERE) from error
        raise _Interrupted(_reason(error)) from error


def _check(answer: requests.Response, title: str) -> None:
    """Refuses answers that say no, and ways that leave TLS behind."""
    schemes = [urlsplit(each.url).scheme for each in (*answer.history, answer)]
    if schemes != sorted(schemes):  # http comes before https
        raise FetchError(f"{title} cannot be had: it leads from https to http", ELSEWHERE)
    said = f"the server answers {answer.status_code} {answer.reason}"
    if answer.status_code in _PASSING:
        raise _Interrupted(said)
    if not answer.ok and answer.status_code != _NO_SUCH_RANGE:
        raise FetchError(
            f"{title} cannot be had: {said}",
            "Upgrade mrsep-deploy, which may know another address, or give a mirror: --from URL.",
        )


def _require_size(answer: requests.Response, size: int, title: str) -> None:
    """Refuses another file by the size that the server states, before anything that has come is written over."""
    if answer.status_code == 200:
        encoded = "Content-Encoding" in answer.headers
        stated = None if encoded else re.fullmatch(r"(\d+)", answer.headers.get("Content-Length", ""))
    else:
        stated = _TOTAL.search(answer.headers.get("Content-Range", ""))
    if stated is not None and int(stated[1]) != size:
        raise FetchError(
            f"{title} has {stated[1]} bytes, expected {size}: it is another file",
            "Upgrade mrsep-deploy, which may know another address, or give a mirror: --from URL.",
        )


def _start(answer: requests.Response, part: Path) -> int:
    """Returns where in the file begins what the server sends; the part is deleted if that does not fit it."""
    if answer.status_code == 200:
        return 0
    found = _RANGE.match(answer.headers.get("Content-Range", ""))
    if answer.status_code == 206 and found is not None and int(found[1]) <= size_of(part):
        return int(found[1])
    discard(part)
    raise _Interrupted("the server has no such part of the file")


def _store(answer: requests.Response, part: Path, start: int, size: int, tell: Tell, title: str) -> None:
    """Writes what the server sends behind the first ``start`` bytes of the part.

    Without a buffer: when the connection breaks, what has come is in the file.
    """
    done = start
    with explained(part):
        file = open(part, "r+b" if start else "wb", buffering=0)  # noqa: SIM115 - closed below
    with file:
        with explained(part):
            file.seek(start)
            file.truncate()
        for chunk in answer.iter_content(CHUNK):
            done += len(chunk)
            if done > size:
                break
            with explained(part):
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]
            tell(done)
        with explained(part):
            os.fsync(file.fileno())
    if done > size:
        discard(part)
        raise FetchError(
            f"{title} has more than the {size} bytes that were expected: it is another file",
            "Nothing of it was kept. Upgrade mrsep-deploy, which may know another address.",
        )
    if done < size:
        raise _Interrupted("the connection ended early")


def shown(address: str) -> str:
    """An address for a message, without what it may hold of secrets: a password, a signature behind ``?``."""
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def discard(part: Path) -> None:
    """Deletes a part, if that is possible: what is told is why, not that."""
    with suppress(OSError):
        part.unlink()


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it; urllib3 keeps some of that beside Python's own chain."""
    found: list[BaseException] = []
    open_ends: list[object] = [error]
    while open_ends:
        each = open_ends.pop()
        if isinstance(each, BaseException) and each not in found:
            found.append(each)
            open_ends += [*each.args, getattr(each, "reason", None), each.__context__, each.__cause__]
    return found


def _reason(error: BaseException) -> str:
    """What the innermost of an error's causes says: the outer ones repeat it in many words."""
    for each in reversed(_causes(error)):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
        if isinstance(each, TimeoutError):
            return "it does not answer in time"
    text = " ".join(str(error).split())
    if "IncompleteRead" in text:
        return "the connection ended early"
    return text if len(text) <= 160 else f"{text[:157]}..."
