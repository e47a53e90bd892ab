"""Files over HTTP: which, how much of them, and what happens when somebody leaves."""

from __future__ import annotations

import asyncio
import email
import email.policy
import errno
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tetrapylon.adapters.errors import Forbidden, NotFound, Truncated
from tetrapylon.gateway.backends.static import StaticBackend
from tetrapylon.gateway.file_answers import PIECE_BYTES
from tetrapylon.gateway.paths import normalise
from tetrapylon.protocols.conditional import format_date
from tetrapylon.protocols.errors import RemoteProtocolError

Ask = Callable[..., Awaitable[Any]]

pytestmark = pytest.mark.anyio

DIGITS = b"0123456789" * 100
BIG = os.urandom(1024) * 1500  # about 12 pieces, the last one short
MODIFIED = 784111777
SECRET = b"secret"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("top")
    root = top / "site"
    (root / "docs").mkdir(parents=True)
    (root / "docs" / "index.html").write_bytes(b"<h1>docs")
    (root / "empty").mkdir()
    (root / "odd" / "index.html").mkdir(parents=True)
    (root / "odd" / "index.txt").write_bytes(b"text")
    (root / "digits.txt").write_bytes(DIGITS)
    (root / "big.bin").write_bytes(BIG)
    (root / "nothing.css").write_bytes(b"")
    (root / ".env").write_bytes(SECRET)
    (root / ".git").mkdir()
    (root / ".git" / "config").write_bytes(SECRET)
    (root / ".well-known").mkdir()
    (root / ".well-known" / "security.txt").write_bytes(b"Contact: us")
    (root / ".well-known" / ".hidden").write_bytes(SECRET)
    (root / "näme ß.txt").write_bytes(b"utf-8")
    (root / os.fsdecode(b"latin-\xe9.txt")).write_bytes(b"latin-1")
    (root / "out").symlink_to("../secret.txt")
    os.utime(root / "digits.txt", (MODIFIED, MODIFIED))
    (top / "secret.txt").write_bytes(SECRET)
    (top / "site-sibling").mkdir()
    (top / "site-sibling" / "f.txt").write_bytes(SECRET)
    return root


@pytest.fixture
def fds() -> Iterator[Callable[[], int]]:
    """Count descriptors; the test must end with as many as it began with."""

    def count() -> int:
        return len(os.listdir("/dev/fd"))

    before = count()
    yield count
    deadline = time.monotonic() + 5
    while count() != before and time.monotonic() < deadline:
        time.sleep(0.001)  # a thread may be about to close the last one
    assert count() == before


@pytest.fixture
async def backend(fds: Callable[[], int], site: Path) -> Any:
    async with StaticBackend("site", site) as entered:
        yield entered


# What is sent


async def test_a_file(ask: Ask, backend: StaticBackend) -> None:
    answer = await ask(backend, "/digits.txt")
    assert answer.status == 200
    assert answer.pieces == [DIGITS]  # head and body in quick succession
    assert answer.headers == {
        b"content-type": b"text/plain; charset=utf-8",
        b"content-length": b"1000",
        b"last-modified": b"Sun, 06 Nov 1994 08:49:37 GMT",
        b"etag": answer.headers[b"etag"],
        b"accept-ranges": b"bytes",
        b"x-content-type-options": b"nosniff",
    }
    assert answer.headers[b"etag"].startswith(b'"')


async def test_head_is_get_without_the_body(ask: Ask, backend: StaticBackend) -> None:
    for path in ("/digits.txt", "/big.bin", "/nothing.css", "/docs/"):
        get = await ask(backend, path)
        head = await ask(backend, path, method="HEAD")
        assert head.messages[0] == get.messages[0]
        assert head.body == b""


async def test_a_large_file_comes_in_pieces(ask: Ask, backend: StaticBackend) -> None:  # B7
    answer = await ask(backend, "/big.bin")
    assert answer.body == BIG
    assert answer.headers[b"content-length"] == b"%d" % len(BIG)
    assert max(map(len, answer.pieces)) <= PIECE_BYTES
    assert len(answer.pieces) == -(-len(BIG) // PIECE_BYTES)


async def test_an_empty_file(ask: Ask, backend: StaticBackend) -> None:
    answer = await ask(backend, "/nothing.css")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers[b"content-length"] == b"0"
    # Some clients ask for a range of everything.
    answer = await ask(backend, "/nothing.css", headers=[(b"range", b"bytes=0-")])
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("index.HTML", b"text/html; charset=utf-8"),
        ("a.min.js", b"text/javascript; charset=utf-8"),
        ("data.json", b"application/json"),
        ("x.tar.gz", b"application/gzip"),
        ("photo.jpeg", b"image/jpeg"),
        ("README", b"application/octet-stream"),
        ("html", b"application/octet-stream"),
        ("dir.html/README", b"application/octet-stream"),
        ("what.is-this", b"application/octet-stream"),
        ("page.tpl", b"text/x-template"),
        ("data.csv", b"text/csv; header=present"),
    ],
)
async def test_media_types(ask: Ask, tmp_path: Path, name: str, media_type: bytes) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    mime = {".tpl": "text/x-template", "csv": "text/csv; header=present"}
    async with StaticBackend("site", tmp_path, mime=mime) as backend:
        answer = await ask(backend, f"/{name}")
    assert answer.headers[b"content-type"] == media_type


async def test_names_in_any_encoding(ask: Ask, backend: StaticBackend) -> None:
    assert (await ask(backend, "/näme ß.txt")).body == b"utf-8"
    assert (await ask(backend, b"/latin-\xe9.txt")).body == b"latin-1"


async def test_cache_control_and_no_ranges(ask: Ask, site: Path) -> None:
    cache_control = "public, max-age=60"
    async with StaticBackend("site", site, cache_control=cache_control, ranges=0) as backend:
        answer = await ask(backend, "/digits.txt", headers=[(b"range", b"bytes=0-1")])
        assert (answer.status, answer.body) == (200, DIGITS)
        assert b"accept-ranges" not in answer.headers
        assert answer.headers[b"cache-control"] == b"public, max-age=60"
        unchanged = await ask(
            backend, "/digits.txt", headers=[(b"if-none-match", answer.headers[b"etag"])]
        )
        assert unchanged.status == 304
        assert unchanged.headers[b"cache-control"] == b"public, max-age=60"


def test_what_cannot_be_a_field_is_refused(site: Path) -> None:
    with pytest.raises(ValueError, match="cache_control"):
        StaticBackend("site", site, cache_control="a\r\nSet-Cookie: b")
    for media_type in ("html", "text/\nhtml", "text/hätml"):
        with pytest.raises(ValueError, match="media type"):
            StaticBackend("site", site, mime={".x": media_type})


async def test_a_root_that_is_none_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        async with StaticBackend("site", tmp_path / "gone"):
            pass


# Methods


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "PROPFIND", "get"])
async def test_other_methods(ask: Ask, backend: StaticBackend, method: str) -> None:
    answer = await ask(backend, "/digits.txt", method=method)
    assert answer.status == 405
    assert answer.headers[b"allow"] == b"GET, HEAD, OPTIONS"
    assert b"content-length" in answer.headers


async def test_options(ask: Ask, backend: StaticBackend) -> None:
    answer = await ask(backend, "/digits.txt", method="OPTIONS")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers == {b"allow": b"GET, HEAD, OPTIONS"}


# Conditions


async def test_not_modified(ask: Ask, backend: StaticBackend) -> None:
    etag = (await ask(backend, "/digits.txt")).headers[b"etag"]
    for method in ("GET", "HEAD"):
        for headers in (
            [(b"if-none-match", b'"a", ' + etag)],
            [(b"if-none-match", b'"a"'), (b"if-none-match", etag)],
            [(b"if-modified-since", format_date(MODIFIED))],
        ):
            answer = await ask(backend, "/digits.txt", method=method, headers=headers)
            assert (answer.status, answer.body) == (304, b"")
            # RFC 9110 §15.4.5
            assert answer.headers == {b"etag": etag}


async def test_a_changed_file_has_another_tag(ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "f"
    tags = set()
    async with StaticBackend("site", tmp_path) as backend:
        for content, modified_ns in ((b"a", 1), (b"ab", 1), (b"ab", 2)):
            file.write_bytes(content)
            os.utime(file, ns=(modified_ns, modified_ns))
            tags.add((await ask(backend, "/f")).headers[b"etag"])
        file.unlink()
        (tmp_path / "occupant").write_bytes(b"")  # takes the freed inode
        file.write_bytes(b"ab")
        os.utime(file, ns=(2, 2))
        tags.add((await ask(backend, "/f")).headers[b"etag"])
    assert len(tags) == 4


async def test_a_failed_precondition(ask: Ask, backend: StaticBackend) -> None:
    for headers in (
        [(b"if-match", b'"other"')],
        [(b"if-unmodified-since", format_date(MODIFIED - 1))],
    ):
        answer = await ask(backend, "/digits.txt", headers=headers)
        assert answer.status == 412
        assert b"etag" not in answer.headers
        assert int(answer.headers[b"content-length"]) == len(answer.body)


async def test_a_date_in_the_future_is_not_promised(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    os.utime(tmp_path / "f", (time.time() + 3600, time.time() + 3600))
    async with StaticBackend("site", tmp_path) as backend:
        answer = await ask(backend, "/f")
    modified = email.utils.parsedate_to_datetime(answer.headers[b"last-modified"].decode())
    assert modified.timestamp() <= time.time()


# Ranges


async def test_one_range(ask: Ask, backend: StaticBackend) -> None:
    whole = await ask(backend, "/digits.txt")
    answer = await ask(backend, "/digits.txt", headers=[(b"range", b"bytes=5-14")])
    assert (answer.status, answer.body) == (206, b"5678901234")
    assert answer.headers == {
        **whole.headers,
        b"content-length": b"10",
        b"content-range": b"bytes 5-14/1000",
    }


async def test_a_range_across_pieces(ask: Ask, backend: StaticBackend) -> None:
    start, stop = PIECE_BYTES - 7, 3 * PIECE_BYTES + 11
    answer = await ask(
        backend, "/big.bin", headers=[(b"range", b"bytes=%d-%d" % (start, stop - 1))]
    )
    assert answer.status == 206
    assert answer.body == BIG[start:stop]
    assert max(map(len, answer.pieces)) <= PIECE_BYTES


async def test_a_range_is_for_get_alone(ask: Ask, backend: StaticBackend) -> None:
    answer = await ask(backend, "/digits.txt", method="HEAD", headers=[(b"range", b"bytes=5-14")])
    assert answer.status == 200
    assert answer.headers[b"content-length"] == b"1000"


async def test_none_satisfiable(ask: Ask, backend: StaticBackend) -> None:
    answer = await ask(backend, "/digits.txt", headers=[(b"range", b"bytes=1000-")])
    assert answer.status == 416
    assert answer.headers[b"content-range"] == b"bytes */1000"
    assert int(answer.headers[b"content-length"]) == len(answer.body)


async def test_two_range_fields_are_none(ask: Ask, backend: StaticBackend) -> None:
    headers = [(b"range", b"bytes=0-1"), (b"range", b"bytes=5-6")]
    assert (await ask(backend, "/digits.txt", headers=headers)).status == 200


async def test_if_range(ask: Ask, backend: StaticBackend) -> None:
    headers = (await ask(backend, "/digits.txt")).headers
    current = (headers[b"etag"], headers[b"last-modified"])
    for value in (*current, b'"other"', b"W/" + headers[b"etag"], format_date(MODIFIED + 1)):
        answer = await ask(
            backend, "/digits.txt", headers=[(b"range", b"bytes=0-1"), (b"if-range", value)]
        )
        assert answer.status == (206 if value in current else 200)
    # RFC 9110 §13.2.2: a condition that fails comes before the range
    answer = await ask(
        backend,
        "/digits.txt",
        headers=[(b"range", b"bytes=0-1"), (b"if-none-match", headers[b"etag"])],
    )
    assert answer.status == 304


def parts_of(answer: Any) -> list[tuple[str, bytes]]:
    """Take a multipart body apart with the standard library; Content-Range and content."""
    assert int(answer.headers[b"content-length"]) == len(answer.body)
    head = b"Content-Type: " + answer.headers[b"content-type"] + b"\r\n\r\n"
    message = email.message_from_bytes(head + answer.body, policy=email.policy.HTTP)
    assert message.get_content_type() == "multipart/byteranges"
    assert not message.defects
    return [(part["content-range"], part.get_payload(decode=True)) for part in message.iter_parts()]


async def test_several_ranges(ask: Ask, backend: StaticBackend) -> None:
    answer = await ask(backend, "/digits.txt", headers=[(b"range", b"bytes=900-902,-2,10-12")])
    assert answer.status == 206
    assert b"content-range" not in answer.headers
    assert parts_of(answer) == [
        ("bytes 900-902/1000", b"012"),
        ("bytes 998-999/1000", b"89"),
        ("bytes 10-12/1000", b"012"),
    ]
    assert b"content-type: text/plain; charset=utf-8\r\n" in answer.body


RANGES = st.lists(
    st.tuples(st.integers(0, 1200), st.integers(0, 1200)).map(sorted), min_size=1, max_size=18
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RANGES)
def test_any_ranges(ask: Ask, site: Path, ranges: list[list[int]]) -> None:
    async def run() -> Any:
        value = b"bytes=" + b",".join(b"%d-%d" % (start, last) for start, last in ranges)
        async with StaticBackend("site", site) as backend:
            return await ask(backend, "/digits.txt", headers=[(b"range", value)])

    answer = asyncio.run(run())
    assert int(answer.headers[b"content-length"]) == len(answer.body)
    if answer.status == 416:
        assert all(start >= len(DIGITS) for start, _ in ranges)
    elif answer.status == 200:
        assert len(ranges) > 16
        assert answer.body == DIGITS
    else:
        assert answer.status == 206
        if b"content-range" in answer.headers:
            parts = [(answer.headers[b"content-range"].decode(), answer.body)]
        else:
            parts = parts_of(answer)
        assert len(parts) <= 16
        for content_range, content in parts:
            first, last = content_range.removeprefix("bytes ").removesuffix("/1000").split("-")
            assert content == DIGITS[int(first) : int(last) + 1]


@pytest.mark.parametrize("spec", [b"%d-", b"0-%d", b"-%d", b"5000-%d", b"%d-0"])
async def test_a_thousand_ranges(ask: Ask, backend: StaticBackend, spec: bytes) -> None:  # B11
    value = b"bytes=" + b",".join(spec % at for at in range(1000))
    began = time.process_time()
    answer = await ask(backend, "/digits.txt", headers=[(b"range", value)])
    assert time.process_time() - began < 0.02
    assert answer.status in (200, 416)


# Directories


async def test_an_index(ask: Ask, backend: StaticBackend, site: Path) -> None:
    answer = await ask(backend, "/docs/")
    assert (answer.status, answer.body) == (200, b"<h1>docs")
    assert answer.headers[b"content-type"] == b"text/html; charset=utf-8"
    async with StaticBackend("site", site, index=["index.html", "index.txt"]) as other:
        assert (await ask(other, "/odd/")).body == b"text"


async def test_no_index_and_no_directory(ask: Ask, backend: StaticBackend) -> None:
    with pytest.raises(Forbidden):
        await ask(backend, "/empty/")
    for path in ("/nowhere/", "/digits.txt/", "/docs/nowhere"):
        with pytest.raises(NotFound):
            await ask(backend, path)


@pytest.mark.parametrize(
    ("path", "root_path", "query", "location"),
    [
        ("/docs", "", b"", b"/docs/"),
        ("/docs", "", b"a=1&b=%20", b"/docs/?a=1&b=%20"),
        ("/docs", "", b'"<\r\nX: y', b"/docs/?%22%3C%0D%0AX:%20y"),
        ("/x/docs", "/x", b"", b"/x/docs/"),
        ("/x y", "/x y", b"", b"/x%20y/"),
        ("//evil.example", "//evil.example", b"", b"/evil.example/"),
        ("/docs", "//evil.example", b"", b"/evil.example/docs/"),
    ],
)
async def test_a_directory_without_its_slash(
    ask: Ask, backend: StaticBackend, path: str, root_path: str, query: bytes, location: bytes
) -> None:
    answer = await ask(backend, path, root_path=root_path, query=query)
    assert answer.status == 301
    assert answer.headers[b"location"] == location


@pytest.mark.parametrize("path", ["//docs", "//evil.example/..", "/%2fevil.example", "/\\evil"])
async def test_no_redirect_to_another_host(ask: Ask, backend: StaticBackend, path: str) -> None:
    with pytest.raises(NotFound):
        await ask(backend, path)


async def test_below_a_mount(ask: Ask, backend: StaticBackend) -> None:
    assert (await ask(backend, "/files/digits.txt", root_path="/files")).body == DIGITS
    # Older frameworks strip the path themselves.
    assert (await ask(backend, "/digits.txt", root_path="/files")).body == DIGITS
    with pytest.raises(NotFound):
        await ask(backend, "/filesdigits.txt", root_path="/files")


# Names that are not for the public


async def test_dotfiles(ask: Ask, backend: StaticBackend, site: Path) -> None:
    hidden = ("/.env", "/.git/config", "/.git/", "/.well-known/.hidden", "/docs/.well-known/x")
    for path in hidden:
        with pytest.raises(NotFound):
            await ask(backend, path)
    assert (await ask(backend, "/.well-known/security.txt")).body == b"Contact: us"
    async with StaticBackend("site", site, dotfiles=True) as other:
        assert (await ask(other, "/.env")).body == SECRET
        for path in ("/.", "/./.env", "/docs/../.env", "/.."):
            with pytest.raises(NotFound):
                await ask(other, path)


UP = (
    "..",
    "%2e%2e",
    "%2E.",
    ".%2e",
    "..;",
    "..%3b",
    "%252e%252e",
    "%c0%ae%c0%ae",
    "%u002e.",
    "...",
)
SLASH = ("/", "%2f", "%5c", "\\", "//", "%c0%af")
SPELLINGS = [
    *(f"/{up}{slash}secret.txt" for up in UP for slash in SLASH),
    *(f"/docs/{up}/{up}/secret.txt" for up in UP),
    *(f"/{up}/site-sibling/f.txt" for up in UP),
    *(f"/digits.txt{tail}/{up}/../secret.txt" for up in UP[:3] for tail in ("", "%00", ";a")),
    "/secret.txt",
    "/-sibling/f.txt",
    "/.env",
    "/%2eenv",
    "/.env%00.txt",
    "/.git%2fconfig",
    "/out",
    "/out/",
    "//etc/passwd",
    "/%2fetc%2fpasswd",
    "/etc/passwd",
    "file:///etc/passwd",
    "/proc/self/environ",
    "/digits.txt%00",
    "/digits.txt%00.html",
    "/digits.txt.",
    "/digits.txt%20",
    "/digits.txt::$DATA",
    "/DIGITS.TXT",
    "/digits.txt~",
    "/.//.env",
    "/docs/..%00/.env",
    "/%",
    "/%zz",
    "/%e2%80%ae",
    "/\x7f",
]


@pytest.mark.parametrize("symlinks", ["inside", "never"])
async def test_no_spelling_leaves_the_root(  # D1
    ask: Ask, site: Path, symlinks: Any
) -> None:
    assert len(SPELLINGS) >= 60
    async with StaticBackend("site", site, symlinks=symlinks) as backend:
        for spelling in SPELLINGS:
            # As another server would hand it on, decoded or not …
            for path in (spelling, spelling.replace("%00", "\0").replace("%5c", "\\")):
                with pytest.raises((NotFound, Forbidden)):
                    await ask(backend, path)
            # … and by way of our own normal path.
            for merges in (True, False):
                try:
                    path = normalise(
                        spelling.encode("latin-1"), keeps_encoded_slash=True, merges_slashes=merges
                    )
                except (RemoteProtocolError, UnicodeError):
                    continue
                try:
                    answer = await ask(backend, path)
                except (NotFound, Forbidden):
                    continue
                assert answer.body == DIGITS


async def test_special_files(ask: Ask, backend: StaticBackend, site: Path) -> None:  # D4
    fifo = site / "fifo"
    os.mkfifo(fifo)
    try:
        began = time.monotonic()
        with pytest.raises(Forbidden):
            await ask(backend, "/fifo")
        assert time.monotonic() - began < 0.05
    finally:
        fifo.unlink()


# Clients that are slow or gone, disks that are


async def test_nothing_is_read_ahead_of_the_client(ask: Ask, backend: StaticBackend) -> None:  # B7
    let_go = asyncio.Event()
    is_held = asyncio.Event()

    async def hold(answer: Any, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            is_held.set()
            await let_go.wait()

    held: list[Any] = []

    async def note(answer: Any, message: dict[str, Any]) -> None:
        held[:] = [answer]
        await hold(answer, message)

    task = asyncio.create_task(ask(backend, "/big.bin", on_send=note))
    await is_held.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(held[0].pieces) == 1
    let_go.set()
    assert (await task).body == BIG


async def test_the_client_leaves(ask: Ask, backend: StaticBackend, fds: Callable[[], int]) -> None:
    before = fds()

    async def leave(answer: Any, message: dict[str, Any]) -> None:
        if len(answer.messages) == 3:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await ask(backend, "/big.bin", on_send=leave)
    assert fds() == before


async def test_cancelled_while_sending(
    ask: Ask, backend: StaticBackend, fds: Callable[[], int]
) -> None:
    before = fds()
    is_held = asyncio.Event()

    async def hold(answer: Any, message: dict[str, Any]) -> None:
        is_held.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(ask(backend, "/big.bin", on_send=hold))
    await is_held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fds() == before


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be in memory: every read has to wait for the disk."""

    def preadv(*arguments: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "not in memory")

    monkeypatch.setattr(os, "preadv", preadv)


async def test_a_slow_disk_does_not_hold_the_loop(
    ask: Ask, backend: StaticBackend, cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = set()
    pread = os.pread

    def noted_pread(*arguments: Any) -> bytes:
        readers.add(threading.current_thread())
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", noted_pread)
    assert (await ask(backend, "/big.bin")).body == BIG
    assert (await ask(backend, "/digits.txt")).body == DIGITS
    assert readers
    assert threading.main_thread() not in readers


async def test_cancelled_while_reading(
    ask: Ask,
    backend: StaticBackend,
    cold: None,
    monkeypatch: pytest.MonkeyPatch,
    fds: Callable[[], int],
) -> None:
    """The descriptor stays open as long as a thread reads from it, and no longer."""
    loop = asyncio.get_running_loop()
    is_reading, is_closed = asyncio.Event(), asyncio.Event()
    let_go = threading.Event()
    reading: list[int] = []
    close = os.close

    def slow_pread(fd: int, size: int, offset: int) -> bytes:
        reading.append(fd)
        loop.call_soon_threadsafe(is_reading.set)
        let_go.wait(10)
        return b"x" * size

    def noted_close(fd: int) -> None:
        close(fd)
        if fd in reading:
            loop.call_soon_threadsafe(is_closed.set)

    monkeypatch.setattr(os, "pread", slow_pread)
    monkeypatch.setattr(os, "close", noted_close)
    task = asyncio.create_task(ask(backend, "/big.bin"))
    await asyncio.wait_for(is_reading.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    os.fstat(reading[0])
    let_go.set()
    await asyncio.wait_for(is_closed.wait(), 10)


async def test_a_file_system_that_cannot_tell(
    ask: Ask, backend: StaticBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preadv(*arguments: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "cannot tell")

    monkeypatch.setattr(os, "preadv", preadv)
    assert (await ask(backend, "/big.bin")).body == BIG
    assert (await ask(backend, "/digits.txt")).body == DIGITS


async def test_a_file_that_shrinks_is_cut_off(ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(BIG)

    async def shrink(answer: Any, message: dict[str, Any]) -> None:
        if len(answer.messages) == 2:
            os.truncate(file, PIECE_BYTES)

    async with StaticBackend("site", tmp_path) as backend:
        with pytest.raises(Truncated):
            await ask(backend, "/f", on_send=shrink)


async def test_a_file_that_grows_keeps_its_length(ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(BIG)

    async def grow(answer: Any, message: dict[str, Any]) -> None:
        if len(answer.messages) == 2:
            with file.open("ab") as end:
                end.write(b"more")

    async with StaticBackend("site", tmp_path) as backend:
        assert (await ask(backend, "/f", on_send=grow)).body == BIG


async def test_others_have_their_turn(ask: Ask, tmp_path: Path) -> None:
    """A client that takes everything at once does not keep the loop to itself."""
    (tmp_path / "f").write_bytes(bytes(64 * PIECE_BYTES))
    turns = 0
    is_over = False

    async def count() -> None:
        nonlocal turns
        while not is_over:
            turns += 1
            await asyncio.sleep(0)

    async with StaticBackend("site", tmp_path) as backend:
        counter = asyncio.create_task(count())
        await ask(backend, "/f")
        is_over = True
        await counter
    assert turns >= 8


# Under a foreign server


async def test_failures_are_answered_under_a_foreign_server(
    ask: Ask, backend: StaticBackend
) -> None:
    for path, status in (("/nowhere", 404), ("/empty/", 403), ("/digits.txt", 200)):
        assert (await ask(backend, path, is_under_gateway=False)).status == status


def test_says_what_it_serves(site: Path) -> None:
    assert StaticBackend("site", site).describe() == f"files in {site}"
