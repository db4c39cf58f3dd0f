"""Files from a server that cuts, stalls, redirects and lies, and from folders: whole and verified, or not there."""

from __future__ import annotations

import hashlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from file_server import Answer, FileServer, serving
from filelock import FileLock

from mrsep_deploy.bundle.published import PublishedFile
from mrsep_deploy.errors import FetchError, MrsepError, OutputError, UsageError
from mrsep_deploy.fetching import transfer
from mrsep_deploy.fetching.download import alone, check_mirror, download
from mrsep_deploy.files import paths

SIZE = 1_000_000
CUT, LATER = 6 * transfer.CHUNK, 10 * transfer.CHUNK
"""What has come up to a break stays in whole chunks."""
DATA = hashlib.shake_256(b"a model").digest(SIZE)
FILE = PublishedFile("a.th", "https://published.invalid/a.th", SIZE, hashlib.sha256(DATA).hexdigest())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return paths.cache_dir("downloads") / "model"


@pytest.fixture
def server() -> Iterator[FileServer]:
    pytest.importorskip("requests")
    with serving(a_th=DATA) as made:
        yield made


def got(mirror: str) -> bytes:
    """The file's bytes, after a download that must succeed."""
    told: list[tuple[str, int, int]] = []
    (path,) = download("model", [FILE], mirror, lambda *what: told.append(what))
    assert told[-1] == ("a.th", SIZE, SIZE)
    assert path == paths.cache_dir("downloads") / "model" / "a.th"
    assert left() == {"a.th": SIZE}
    return path.read_bytes()


def refused(mirror: str, error: type[MrsepError] = FetchError) -> str:
    """The one line that says why a download failed; the file does not have its name then."""
    with pytest.raises(error) as raised:
        download("model", [FILE], mirror, lambda *_: None)
    assert "a.th" not in left()
    assert len(str(raised.value).splitlines()) == 1
    assert raised.value.fix
    return str(raised.value)


def left() -> dict[str, int]:
    folder = paths.cache_dir("downloads") / "model"
    return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.exists() else {}


def test_a_file_arrives_and_is_not_asked_for_again(server: FileServer) -> None:
    assert got(server.address) == DATA
    assert got(f"{server.address}/some/folder/") == DATA
    assert server.asked == [("a.th", None)]


def test_a_cut_connection_is_gone_on_with(server: FileServer) -> None:
    server.answers = [Answer(cut=CUT), Answer(cut=LATER)]
    assert got(server.address) == DATA
    assert server.asked == [("a.th", None), ("a.th", "bytes=393216-"), ("a.th", "bytes=655360-")]


def test_a_later_download_goes_on_where_one_stopped(server: FileServer) -> None:
    server.usual = Answer(cut=CUT)
    line = refused(server.address)
    assert "cannot be had after 393216 of 1000000 bytes: the connection ended early" in line
    assert line.endswith("it goes on where it stopped.")
    assert left() == {"a.th.part": CUT}
    server.usual = Answer()
    assert got(server.address) == DATA
    assert server.asked[-1] == ("a.th", "bytes=393216-")


def test_a_server_without_parts_begins_anew(server: FileServer) -> None:
    server.answers = [Answer(cut=CUT), Answer(ranges=False)]
    assert got(server.address) == DATA


def test_a_server_that_always_cuts_at_one_place_is_given_up(server: FileServer) -> None:
    server.usual = Answer(cut=CUT, ranges=False)
    refused(server.address)
    assert len(server.asked) == 1 + transfer.TRIES


def test_what_was_there_may_be_damaged(server: FileServer, home: Path) -> None:
    """A part with a wrong byte: it is gone on with, found wrong, and everything is got again."""
    home.mkdir(parents=True)
    (home / "a.th.part").write_bytes(b"x" + DATA[1:500_000])
    assert got(server.address) == DATA
    assert server.asked == [("a.th", "bytes=500000-"), ("a.th", None)]
    (home / "a.th").write_bytes(b"x" + DATA[1:])
    assert got(server.address) == DATA, "a damaged file of the right size is not taken"
    (home / "a.th.part").write_bytes(DATA + b"more")
    (home / "a.th").unlink()
    assert got(server.address) == DATA


def test_another_file_of_the_same_size_is_refused(server: FileServer) -> None:
    server.usual = Answer(data=bytes(SIZE))
    assert "has sha256 d29751f2649b32ff…, expected" in refused(server.address)
    assert left() == {}


def test_another_size_is_refused(server: FileServer) -> None:
    server.usual = Answer(data=DATA + b"x")
    assert "has 1000001 bytes, expected 1000000: it is another file" in refused(server.address)
    assert left() == {}
    server.usual = Answer(data=DATA[:-1])
    assert "has 999999 bytes, expected 1000000: it is another file" in refused(server.address)
    server.usual = Answer(data=DATA + b"x", length=False)
    assert "has more than the 1000000 bytes that were expected" in refused(server.address)
    assert left() == {}


def test_what_has_come_outlives_an_answer_of_another_kind(server: FileServer) -> None:
    """A portal that answers everything with a page of its own, before and after."""
    server.answers = [Answer(cut=CUT)]
    server.usual = Answer(data=b"<html>Log in</html>", ranges=False)
    assert "has 19 bytes, expected 1000000: it is another file" in refused(server.address)
    assert left() == {"a.th.part": CUT}
    server.usual = Answer()
    assert got(server.address) == DATA
    assert server.asked[-1] == ("a.th", "bytes=393216-")


def test_no_secret_is_told(server: FileServer) -> None:
    server.usual = Answer(status=403)
    host = server.address.removeprefix("http://")
    line = refused(f"http://user:SECRET@{host}")
    assert "SECRET" not in line
    assert transfer.shown(f"http://user:SECRET@{host}/a.th?signature=SECRET") == f"http://{host}/a.th"


def test_no_way_from_https_to_http() -> None:
    requests = pytest.importorskip("requests")
    answer, before = requests.Response(), requests.Response()
    answer.url, before.url = "http://example.org/a", "https://example.org/a"
    answer.status_code, answer.history = 200, [before]
    with pytest.raises(FetchError, match="leads from https to http"):
        transfer._check(answer, "a")
    answer.url, before.url = before.url, answer.url
    transfer._check(answer, "a")


def test_certificates_that_are_none_end_it_and_broken_handshakes_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = pytest.importorskip("requests")
    for cause, kind in (
        (ssl.SSLCertVerificationError(1, "self-signed certificate"), FetchError),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), transfer._Interrupted),
    ):
        error = requests.exceptions.SSLError(cause)
        monkeypatch.setattr(requests, "get", Mock(side_effect=error))
        with pytest.raises(kind):
            transfer._attempt("https://example.org/a", Path("nowhere"), 1, lambda _: None)


def test_a_server_that_stalls_is_given_up(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "READ_SECONDS", 0.2)
    server.usual = Answer(stall=CUT)
    assert "after 393216 of 1000000 bytes" in refused(server.address)


def test_redirects_are_followed(server: FileServer) -> None:
    server.answers = [Answer(to=f"{server.address}/elsewhere/a.th"), Answer(to="/b/a.th")]
    assert got(server.address) == DATA
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("to", "message"), [("/a.th", "30 redirects"), ("file:///etc/passwd", "No connection adapters")]
)
def test_redirects_that_lead_nowhere(server: FileServer, to: str, message: str) -> None:
    server.usual = Answer(to=to)
    assert message in refused(server.address)


def test_what_a_server_answers(server: FileServer) -> None:
    server.answers = [Answer(status=503), Answer(status=429)]
    assert got(server.address) == DATA
    shutil.rmtree(paths.cache_dir("downloads"))
    server.asked.clear()
    server.usual = Answer(status=403)
    assert "the server answers 403 Forbidden" in refused(server.address)
    assert len(server.asked) == 1, "it would say the same again"
    del server.files["a.th"]
    server.usual = Answer()
    assert "the server answers 404 Not Found" in refused(server.address)


def test_without_a_network() -> None:
    pytest.importorskip("requests")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nothing answers there
        line = refused(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert (
        "cannot be had: Connection refused. Check the connection, or get the file on another machine" in line
    )


def test_a_folder_in_place_of_a_network(tmp_path: Path) -> None:
    folder = tmp_path / "stick"
    folder.mkdir()
    assert "a.th cannot be read: No such file" in refused(str(folder))
    (folder / "a.th").write_bytes(DATA[:-1])
    assert "has 999999 bytes, expected 1000000: it is damaged or another file" in refused(str(folder))
    (folder / "a.th").write_bytes(bytes(SIZE))
    assert "it is damaged or another file" in refused(str(folder))
    assert left() == {}
    (folder / "a.th").write_bytes(DATA)
    assert got(str(folder)) == DATA


@pytest.mark.parametrize("mirror", ["ftp://example.org", "no/such/folder", "", "file:///etc"])
def test_what_is_no_mirror(mirror: str) -> None:
    with pytest.raises(UsageError, match="is neither an address"):
        check_mirror(mirror)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "requests", None)
    for mirror in (None, "http://127.0.0.1:1"):
        with pytest.raises(FetchError, match=r'pip install "mrsep-deploy\[fetch\]"'):
            check_mirror(mirror)
    check_mirror(str(tmp_path))


def test_a_disk_without_room_is_found_before_the_first_byte(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=SIZE - 1))
    assert "the download needs 1 MB" in refused(server.address, OutputError)
    assert server.asked == []


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit on the size of files")
@pytest.mark.parametrize("from_folder", [False, True])
def test_a_disk_that_fills_up_leaves_nothing(server: FileServer, tmp_path: Path, from_folder: bool) -> None:
    """A limit on the size of files stands in for the disk: writing fails in the middle."""
    (tmp_path / "a.th").write_bytes(DATA)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "from mrsep_deploy.bundle.published import PublishedFile\n"
        "from mrsep_deploy.errors import OutputError\n"
        "from mrsep_deploy.fetching.download import download\n"
        f"file = PublishedFile({FILE.name!r}, {FILE.address!r}, {SIZE}, {FILE.sha256!r})\n"
        "try: download('model', [file], sys.argv[1], lambda *_: None)\n"
        "except OutputError as error: print(error)\n"
    )
    mirror = str(tmp_path) if from_folder else server.address
    done = subprocess.run(
        [sys.executable, "-c", code, mirror], capture_output=True, text=True, check=True, timeout=120
    )
    assert "a.th.part cannot be written: File too large" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert left() == {}


def test_two_at_once(home: Path) -> None:
    home.parent.mkdir(parents=True)
    with (
        FileLock(home.with_name("model.lock")),
        pytest.raises(OutputError, match="another process is fetching model into"),
        alone("model"),
    ):
        pytest.fail("two at once")


def test_a_folder_that_cannot_be_written(server: FileServer, home: Path) -> None:
    home.parent.mkdir(parents=True)
    home.write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        download("model", [FILE], server.address, lambda *_: None)
