"""Sockets that can and cannot be listened on."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tetrapylon.gateway.config_values import Endpoint
from tetrapylon.gateway.listener import BindFailure, address_of, open_sockets


def test_tcp_and_unix(tmp_path: Path) -> None:
    path = str(tmp_path / "gate.sock")
    sockets = open_sockets(
        [Endpoint("127.0.0.1", 0), Endpoint("::1", 0), Endpoint("", 0, path)], backlog=8
    )
    try:
        four, six, unix = sockets
        assert address_of(four) == f"http://127.0.0.1:{four.getsockname()[1]}"
        assert address_of(six) == f"http://[::1]:{six.getsockname()[1]}"
        assert address_of(unix) == f"unix:{path}"
        for sock in sockets:
            with socket.socket(sock.family, socket.SOCK_STREAM) as client:
                client.connect(sock.getsockname())
    finally:
        for sock in sockets:
            sock.close()


def test_name_with_two_families_has_one_port() -> None:
    sockets = open_sockets([Endpoint("localhost", 0)], backlog=8)
    try:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
    finally:
        for sock in sockets:
            sock.close()


def test_address_in_use_closes_the_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindFailure, match=f"127.0.0.1:{port}.*another server"):
            open_sockets([Endpoint("127.0.0.1", 0), Endpoint("127.0.0.1", port)], backlog=8)


def test_unknown_host() -> None:
    with pytest.raises(BindFailure, match="no such host name"):
        open_sockets([Endpoint("no-such-host.invalid", 80)], backlog=8)


def test_address_of_another_machine() -> None:
    with pytest.raises(BindFailure, match="no such address"):
        open_sockets([Endpoint("192.0.2.1", 8000)], backlog=8)


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "gate.sock")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.close()
    (fresh,) = open_sockets([Endpoint("", 0, path)], backlog=8)
    fresh.close()


def test_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "gate.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(BindFailure, match="another server listens there"):
            open_sockets([Endpoint("", 0, path)], backlog=8)
        assert os.path.exists(path)


def test_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "gate.sock"
    path.write_text("precious")
    with pytest.raises(BindFailure, match="no socket"):
        open_sockets([Endpoint("", 0, str(path))], backlog=8)
    assert path.read_text() == "precious"


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BindFailure, match="folder does not exist"):
        open_sockets([Endpoint("", 0, str(tmp_path / "none" / "x.sock"))], backlog=8)


def test_family_that_the_machine_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    # As ::1 of "localhost" where IPv6 is switched off.
    found = (250, socket.SOCK_STREAM, 0, "", ("::1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found])
    with pytest.raises(BindFailure, match="cannot listen on"):
        open_sockets([Endpoint("localhost", 0)], backlog=1)
