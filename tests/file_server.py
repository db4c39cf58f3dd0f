"""A server of files on 127.0.0.1 that cuts, stalls, redirects and lies when it is told to."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """How one request is answered.

    Attributes:
        status: of HTTP; 200 becomes 206 where a part was asked for.
        cut: bytes after which the connection ends, though more were announced.
        stall: bytes after which nothing comes any more, until the server ends.
        ranges: whether parts are given.
        to: where it redirects.
        data: sent in place of the file.
        length: whether its length is told.
    """

    status: int = 200
    cut: int | None = None
    stall: int | None = None
    ranges: bool = True
    to: str = ""
    data: bytes | None = None
    length: bool = True


@dataclass
class FileServer:
    """Attributes:
    files: by their names.
    answers: the next ones, in order; ``usual`` after them.
    asked: name and ``Range`` of every request.
    """

    address: str
    files: dict[str, bytes]
    answers: list[Answer] = field(default_factory=list)
    usual: Answer = field(default_factory=Answer)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(**files: bytes) -> Iterator[FileServer]:
    """A server of these files; a ``_`` in a name stands for the dot."""
    state: FileServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name, asked = self.path.rpartition("/")[2], self.headers["Range"]
            state.asked.append((name, asked))
            how = state.answers.pop(0) if state.answers else state.usual
            data = state.files.get(name) if how.data is None else how.data
            if how.to or data is None or how.status >= 300:
                self._nothing(302 if how.to else 404 if data is None else how.status, how.to)
                return
            found = re.fullmatch(r"bytes=(\d+)-", asked or "") if how.ranges else None
            start = int(found[1]) if found else 0
            if found and start >= len(data):
                self._nothing(416, "", f"bytes */{len(data)}")
                return
            self.send_response(206 if found else how.status)
            if found:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            if how.length:
                self.send_header("Content-Length", str(len(data) - start))
            else:
                self.send_header("Connection", "close")
            self.end_headers()
            ends = [len(data), *(each for each in (how.cut, how.stall) if each is not None)]
            self.wfile.write(data[start : min(ends)])
            if how.stall is not None:
                self.wfile.flush()
                state.stalled.set()
                state.ended.wait(60)
            if min(ends) < len(data):
                self.close_connection = True

        def _nothing(self, status: int, to: str, parts: str = "") -> None:
            self.send_response(status)
            if parts:
                self.send_header("Content-Range", parts)
            if to:
                self.send_header("Location", to)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Tests read nothing of it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    named = {name.replace("_", "."): data for name, data in files.items()}
    state = FileServer(f"http://127.0.0.1:{server.server_port}", named)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
