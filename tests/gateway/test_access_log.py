"""One request, one line, whatever a client sends and whatever the file takes."""

import fcntl
import json
import logging
import os
import re
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.gateway import access_log
from tetrapylon.gateway.access_log import AccessLog
from tetrapylon.protocols.http1.events import Request

FIELDS = [
    (b"host", b"example.com"),
    (b"user-agent", b"curl/8.5"),
    (b"referer", b"https://example.com/from"),
]


def request(
    target: bytes = b"/a?b=c", method: str = "GET", fields: list[tuple[bytes, bytes]] = FIELDS
) -> Request:
    return Request(method, target, "1.1", fields, 0, True, False, b"example.com")


def record(log: AccessLog, **changed: object) -> None:
    values = {
        "client": "127.0.0.1",
        "request": request(),
        "status": 200,
        "body_bytes": 5,
        "duration_s": 0.0012341,
        "backend": "shop",
        **changed,
    }
    log.record(**values)  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def written(file: Path):
    """Record with a fresh log; return what is in the file."""

    def write(format="combined", **changed: object) -> bytes:
        file.unlink(missing_ok=True)
        log = AccessLog(format, file)
        record(log, **changed)
        log.close()
        return file.read_bytes()

    return write


@pytest.fixture
def in_berlin(monkeypatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    monkeypatch.setattr(access_log.time, "time", lambda: 1_700_000_000.75)
    yield
    monkeypatch.undo()
    time.tzset()


def test_combined_is_apache_s_with_duration_and_backend(written, in_berlin) -> None:
    assert written() == (
        b'127.0.0.1 - - [14/Nov/2023:23:13:20 +0100] "GET /a?b=c HTTP/1.1" 200 5 '
        b'"https://example.com/from" "curl/8.5" 0.001234 shop\n'
    )


def test_json_is_an_object_a_line(written, in_berlin) -> None:
    assert written("json", request_id="7f-1").count(b"\n") == 1
    assert json.loads(written("json", request_id="7f-1")) == {
        "time": "2023-11-14T23:13:20+01:00",
        "client": "127.0.0.1",
        "method": "GET",
        "target": "/a?b=c",
        "http_version": "1.1",
        "status": 200,
        "body_bytes": 5,
        "duration_s": 0.001234,
        "backend": "shop",
        "referer": "https://example.com/from",
        "user_agent": "curl/8.5",
        "request_id": "7f-1",
    }


@pytest.mark.parametrize(
    ("user", "logged", "in_json"),
    [
        ("ada", b"ada", "ada"),
        ("", b"-", None),
        ("Ada Lovelace", rb"Ada\x20Lovelace", "Ada Lovelace"),
        ('a"] - [\n\x1b\\', rb"a\"]\x20-\x20[\x0a\x1b\\", 'a"] - [\n\x1b\\'),
        ("\xc3\xbc", rb"\xc3\xbc", "ü"),
        ("\xff", rb"\xff", "\\xff"),
    ],
)
def test_whom_an_authorizer_found(written, user, logged, in_json) -> None:
    # S10
    line = written(user=user)
    assert line.startswith(b"127.0.0.1 - " + logged + b" [")
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert b'"https://example.com/from" "curl/8.5"' in line
    assert json.loads(written("json", user=user)).get("user") == in_json


def test_what_was_no_request_has_a_line_too(written) -> None:
    line = written(request=None, status=400, client="", backend="-")
    assert re.fullmatch(rb'- - - \[[^]]+\] "-" 400 5 "-" "-" 0\.001234 -\n', line)
    entry = json.loads(written("json", request=None, status=400))
    assert entry["status"] == 400
    assert entry["method"] is None


def test_the_second_is_that_of_the_answer(file, monkeypatch) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr(access_log.time, "time", lambda: now)
    log = AccessLog("json", file)
    record(log)
    now += 1.5
    record(log)
    log.close()
    first, second = (json.loads(line)["time"] for line in file.read_text().splitlines())
    assert first != second


def test_west_of_greenwich_and_half_hours(written, monkeypatch) -> None:
    monkeypatch.setenv("TZ", "NST3:30")
    time.tzset()
    try:
        assert b" -0330] " in written()
        assert json.loads(written("json"))["time"].endswith("-03:30")
    finally:
        monkeypatch.undo()
        time.tzset()


# S10
@pytest.mark.parametrize(
    ("value", "logged"),
    [
        (b'a"b', rb"a\"b"),
        (b"a\\b", rb"a\\b"),
        (b"a\rb\nc", rb"a\x0db\x0ac"),
        (b"\x1b]0;title\x07", rb"\x1b]0;title\x07"),
        (b"\x9b31m\x7f\xff", rb"\x9b31m\x7f\xff"),
        ("ü".encode(), rb"\xc3\xbc"),
    ],
)
def test_what_a_client_sends_is_escaped(written, value, logged) -> None:
    fields = [(b"user-agent", value), (b"referer", value)]
    line = written(request=request(b"/" + value, fields=fields))
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert b'"GET /' + logged + b' HTTP/1.1"' in line
    assert line.count(b'"' + logged + b'"') == 2


def test_json_says_what_the_bytes_say_and_stays_ascii(written) -> None:
    fields = [(b"user-agent", "ü\x9b\u2028".encode()), (b"referer", b"\xff\n\x7f")]
    line = written("json", request=request(b'/"\\', fields=fields))
    assert line.isascii()
    assert line.count(b"\n") == 1
    entry = json.loads(line)
    assert (entry["target"], entry["user_agent"]) == ('/"\\', "ü\x9b\u2028")
    assert entry["referer"] == "\\xff\n\x7f"


@settings(deadline=None)
@given(
    st.binary(max_size=30),
    st.binary(max_size=30),
    st.text('aé\u2028\U0001f600 "\\\n\r\x00\x1b\x7f\x85\x9b', max_size=10),
)
def test_any_bytes_make_one_line_that_can_be_taken_apart(tmp_path_factory, target, agent, name):
    fields = [(b"user-agent", agent)]
    file = tmp_path_factory.mktemp("log") / "access.log"
    combined, as_json = AccessLog("combined", file), AccessLog("json", file)
    for log in (combined, as_json):
        record(log, request=request(target, fields=fields), backend=name)
        log.close()
    first, second = file.read_bytes().splitlines(keepends=True)
    assert (first + second).decode("ascii").count("\n") == 2
    assert first.translate(None, bytes(range(32, 127))) == b"\n"
    match = re.fullmatch(
        r'127\.0\.0\.1 - - \[[^]]*\] "GET ((?:[^"\\]|\\.)*) HTTP/1\.1" 200 5 '
        r'"((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)" 0\.001234 (.*)\n',
        first.decode("ascii"),
    )
    assert match is not None
    # Nothing is lost: the escapes are those of a Python bytes literal.
    assert match[1].encode().decode("unicode_escape").encode("latin-1") == target
    assert match[3].encode().decode("unicode_escape").encode("latin-1") == agent
    assert json.loads(second)["backend"] == name


# Writing


def test_a_line_is_written_within_the_bound_without_being_asked(file) -> None:
    log = AccessLog("combined", file)
    record(log)
    deadline = time.monotonic() + 5
    while not file.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert file.read_bytes().count(b"\n") == 1
    log.close()


def test_many_lines_are_written_at_once_and_in_order(file, monkeypatch) -> None:
    writes = []
    write = os.write

    def counted(fd: int, data) -> int:
        writes.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(access_log.os, "write", counted)
    log = AccessLog("combined", file)
    for number in range(2000):
        record(log, request=request(b"/%d" % number))
    assert log.flush()
    log.close()
    lines = file.read_text().splitlines()
    assert [int(line.split("GET /")[1].split()[0]) for line in lines] == list(range(2000))
    assert len(writes) < 100
    assert log.dropped == 0


def test_flush_waits_for_what_was_recorded_before(file) -> None:
    log = AccessLog("combined", file)
    assert log.flush(0.1), "nothing to wait for"
    record(log)
    assert log.flush()
    assert file.read_bytes().endswith(b"shop\n")
    log.close()
    log.close()


def test_a_renamed_file_is_followed_by_reopen(file) -> None:
    log = AccessLog("combined", file)
    record(log, backend="before")
    moved = file.rename(file.with_suffix(".1"))
    log.reopen()
    record(log, backend="after")
    log.close()
    assert moved.read_bytes().endswith(b" before\n")
    assert file.read_bytes().endswith(b" after\n")
    assert file.read_bytes().count(b"\n") == 1


def test_reopen_keeps_the_old_file_where_there_can_be_no_new_one(file, caplog) -> None:
    log = AccessLog("combined", file)
    moved = file.rename(file.with_suffix(".1"))
    file.mkdir()
    log.reopen()
    record(log)
    log.close()
    assert moved.read_bytes().count(b"\n") == 1
    assert "stays in its old file" in caplog.text


def test_a_file_that_cannot_be_opened_is_an_oserror(tmp_path) -> None:
    with pytest.raises(OSError):
        AccessLog("combined", tmp_path / "absent" / "access.log")


def test_a_pipe_that_nobody_reads_costs_lines_and_no_time(tmp_path, monkeypatch, caplog) -> None:
    """S10: a blocked log pipe."""
    monkeypatch.setattr(access_log, "BUFFER_BYTES", 64 * 1024)
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        log = AccessLog("combined", fifo)
        began_at = time.monotonic()
        for _ in range(5000):
            record(log)
        assert time.monotonic() - began_at < 2
        assert log.dropped > 0
        assert not log.flush(0.05)
        # The reader comes back: what is buffered comes, whole lines all of it.
        fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        received: list[bytes] = []
        draining = threading.Thread(target=_read_all, args=(reader, received))
        draining.start()
        log.close()
        draining.join(5)
    finally:
        os.close(reader)
    data = b"".join(received)
    assert data.count(b"\n") + log.dropped == 5000
    assert all(line.endswith(b" 0.001234 shop") for line in data.split(b"\n")[:-1])
    assert "dropped" in caplog.text


def _read_all(fd: int, received: list[bytes]) -> None:
    while data := os.read(fd, 65536):
        received.append(data)


def test_a_full_disk_costs_lines_and_tears_none(file, monkeypatch, caplog) -> None:
    """S10: a write that ends within a line, then no more; then there is room again."""
    write = os.write
    room = [30]

    def cramped(fd: int, data) -> int:
        if room[0] <= 0:
            raise OSError(28, "No space left on device")
        count = write(fd, data[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(access_log.os, "write", cramped)
    log = AccessLog("combined", file)
    record(log, backend="first")
    log.flush()
    record(log, backend="second")
    log.flush()
    room[0] = 10_000
    record(log, backend="third")
    log.close()
    assert log.dropped == 2
    torn, third = file.read_bytes().splitlines()
    assert len(torn) == 30
    assert third.startswith(b"127.0.0.1 ")
    assert third.endswith(b" third")
    assert "No space left" in caplog.text


def test_record_never_raises(file, caplog) -> None:
    log = AccessLog("json", file)
    record(log, backend="\ud800")
    record(log)
    log.close()
    record(log)
    assert file.read_bytes().count(b"\n") == 1
    assert "cannot write of a request" in caplog.text


def test_a_second_s_failures_are_one_line_of_the_log(file, monkeypatch, caplog) -> None:
    def full(fd: int, data) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(access_log.os, "write", full)
    log = AccessLog("combined", file)
    with caplog.at_level(logging.ERROR):
        for _ in range(20):
            record(log)
            log.flush()
    said = len(caplog.records)
    log.close()
    assert log.dropped == 20
    assert said <= 2
