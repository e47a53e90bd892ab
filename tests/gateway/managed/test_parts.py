"""The parts of a managed application by themselves: sockets, changes, memory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.adapters.addresses import TcpAddress, UnixAddress
from tetrapylon.gateway.managed import changes as changes_module
from tetrapylon.gateway.managed import listening_socket
from tetrapylon.gateway.managed.changes import Changes
from tetrapylon.gateway.managed.listening_socket import ListeningSocket, listen
from tetrapylon.gateway.managed.memory import is_supported, memory_over

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def call(listener: ListeningSocket) -> socket.socket:
    assert isinstance(listener.address, UnixAddress)
    caller = socket.socket(socket.AF_UNIX)
    caller.connect(listener.address.path)
    return caller


# Sockets


@pytest.fixture(params=["descriptors", "names"])
def short(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a short path, on systems that find sockets by descriptor, and by name."""
    if request.param == "names":
        monkeypatch.setattr(listening_socket, "_DESCRIPTORS", "/nonexistent")
    monkeypatch.chdir(tmp_path)
    return Path()


def test_a_successor_takes_the_path_when_it_is_told(short: Path) -> None:
    old = listen(UnixAddress("app"))
    inode = os.stat("app").st_ino
    new = old.successor()
    assert os.stat("app").st_ino == inode
    assert len(os.listdir()) == 2
    new.take_over()
    assert os.listdir() == ["app"]
    assert os.stat("app").st_ino != inode
    with call(new):
        assert new.has_callers()
        assert not old.has_callers()
    old.close()
    assert os.listdir() == ["app"]
    with call(new):
        pass
    new.close()
    new.close()
    assert not os.listdir()


def test_a_successor_that_does_not_take_over_leaves_nothing(short: Path) -> None:
    old = listen(UnixAddress("app"))
    old.successor().close()
    assert os.listdir() == ["app"]
    with call(old):
        assert old.has_callers()
    old.close()


def test_private_sockets_are_apart(short: Path) -> None:
    old = listen(None)
    new = old.successor()
    assert old.address != new.address
    assert new.is_apart
    new.take_over()
    old.close()
    with call(new):
        assert new.has_callers()
    new.close()
    assert not os.listdir()


def test_a_socket_of_somebody_is_left_alone(short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other, contextlib.ExitStack() as callers:
        other.bind("app")
        other.listen(0)
        # Also when nobody can be called there just now.
        for _ in range(3):
            caller = callers.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)
            is_full = caller.connect_ex("app") == errno.EAGAIN
        assert is_full
        with pytest.raises(OSError, match="in use"):
            listen(UnixAddress("app"))
        assert os.listdir() == ["app"]
    listen(UnixAddress("app")).close()
    assert not os.listdir()
    Path("app").touch()
    with pytest.raises(OSError, match="in use"):
        listen(UnixAddress("app"))


def test_a_path_may_be_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than a socket's address may be, where it does not begin here.
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.chdir(folder)
    old = listen(UnixAddress("app"))
    old._given = str(folder / "app")
    if not old.is_apart:
        pytest.skip("this system finds sockets by name alone")
    new = old.successor()
    new.take_over()
    old.close()
    with call(new):
        assert new.has_callers()
    new.close()
    assert not os.listdir()


def test_a_tcp_address_is_shared() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = TcpAddress("127.0.0.1", free.getsockname()[1])
    old = listen(address)
    new = old.successor()
    assert not new.is_apart
    assert new.address == old.address == address
    old.close()
    new.take_over()
    new.knock()
    with socket.create_connection((address.host, address.port)):
        assert new.has_callers()
    new.turn_away()
    assert not new.has_callers()
    # Nobody to turn away is no reason to wait for somebody.
    new.turn_away()
    assert os.get_blocking(new.fileno())
    new.close()


def test_who_calls_is_noticed_and_the_socket_goes_on_to_block(run: Run) -> None:
    async def main() -> None:
        listener = listen(None)
        called = asyncio.Event()
        listener.watch(called.set)
        with call(listener):
            await asyncio.wait_for(called.wait(), 10)
        listener.unwatch()
        listener.unwatch()
        # As its processes will see it.
        assert os.get_blocking(listener.fileno())
        listener.turn_away()
        listener.watch(called.set)
        listener.close()

    run(main())


# Changes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_text("1")
    return file


def test_a_change_counts_when_it_has_come_to_rest(file: Path) -> None:
    changes = Changes([str(file)])
    assert changes.look() is None
    for text in ("22", "333"):
        file.write_text(text)
        assert changes.look() is None
    assert changes.look() == str(file)
    assert changes.look() is None


def test_what_vanishes_is_no_change_until_it_is_another(file: Path) -> None:
    changes = Changes([str(file)])
    kept = file.with_name("kept")
    file.rename(kept)
    assert [changes.look() for _ in range(3)] == [None] * 3
    kept.rename(file)
    assert [changes.look() for _ in range(3)] == [None] * 3
    file.unlink()
    assert changes.look() is None
    file.write_text("other")
    assert [changes.look(), changes.look()] == [None, str(file)]


def test_a_file_that_comes_to_be(tmp_path: Path) -> None:
    changes = Changes([str(tmp_path / "later")])
    assert changes.look() is None
    (tmp_path / "later").touch()
    assert [changes.look(), changes.look(), changes.look()] == [None, str(tmp_path / "later"), None]


def test_a_link_that_leads_elsewhere(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "other"
    other.write_text("1")
    link = tmp_path / "link"
    link.symlink_to(file)
    changes = Changes([str(link)])
    link.unlink()
    link.symlink_to(other)
    assert [changes.look(), changes.look()] == [None, str(link)]


def test_in_folders_what_editors_and_python_leave_is_no_change(tmp_path: Path) -> None:
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    (tmp_path / "code" / ".git").mkdir()
    changes = Changes([str(tmp_path / "code")])
    for name in ("a.py~", ".a.py.swp", "a.pyc", "__pycache__/a.py", ".git/index"):
        (tmp_path / "code" / name).touch()
    assert [changes.look() for _ in range(3)] == [None] * 3
    (tmp_path / "code" / "a.py").touch()
    assert [changes.look(), changes.look()] == [None, str(tmp_path / "code" / "a.py")]


def test_a_huge_folder_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "_MOST_FILES", 10)
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        for name in range(4):
            (tmp_path / str(number) / str(name)).touch()
    assert len(Changes([str(tmp_path)])._known) < 20


# Memory


@pytest.mark.skipif(not is_supported(), reason="this system does not tell")
def test_what_a_process_and_its_children_hold() -> None:
    # The parent holds 20 MiB that its child shares, and the child 40 MiB of its own.
    program = (
        "import os, sys, time; a = os.urandom(1) * (20 << 20)\n"
        "if not os.fork(): b = os.urandom(1) * (40 << 20)\n"
        "print(flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", program], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.readline()
            held = memory_over(process.pid, 55 << 20)
            assert held is not None
            # Summed up, the resident sets would be 20 MiB more.
            assert 58 << 20 < held < 78 << 20
            assert memory_over(process.pid, 100 << 20) is None
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while memory_over(process.pid, 0) is not None:
        assert time.monotonic() < deadline
