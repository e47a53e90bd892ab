"""Addresses as they are written, and what names stand for."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from tetrapylon.adapters import addresses
from tetrapylon.adapters.addresses import (
    Found,
    SrvAddress,
    TcpAddress,
    is_name,
    look_up,
    parse_addresses,
)

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


def test_as_they_are_written() -> None:
    texts = ("unix:/run/a b", "127.0.0.1:9000", "[::1]:9000", "php:9000", "srv:_fcgi._tcp.app.test")
    parsed = parse_addresses(texts)
    assert tuple(map(str, parsed)) == texts
    assert [is_name(address) for address in parsed] == [False, False, False, True, True]
    assert parse_addresses("srv:_f._tcp.app.test.") == (SrvAddress("_f._tcp.app.test"),)


@pytest.mark.parametrize(
    "texts",
    [
        (),
        "",
        "srv:",
        "srv:app.test",
        "srv:_fcgi._tcp",
        "srv:_fcgi.tcp.app.test",
        "srv:_fcgi._tcp..test",
        ("unix:/a", "unix:/a"),
        ("127.0.0.1:1", "nowhere"),
    ],
)
def test_what_is_no_address(texts: Any) -> None:
    with pytest.raises(ValueError):
        parse_addresses(texts)


def test_a_host_stands_for_all_of_its_addresses(
    run: Run[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            assert (host, port) == ("app.test", 9000)
            kind = (socket.SOCK_STREAM, 6, "")
            return [
                (socket.AF_INET6, *kind, ("::1", port, 0, 0)),
                (socket.AF_INET, *kind, ("127.0.0.1", port)),
                (socket.AF_INET, *kind, ("127.0.0.1", port)),
            ]

        loop = SimpleNamespace(getaddrinfo=getaddrinfo)
        monkeypatch.setattr(addresses.asyncio, "get_running_loop", lambda: loop)
        assert await look_up(TcpAddress("app.test", 9000)) == (
            Found(TcpAddress("::1", 9000)),
            Found(TcpAddress("127.0.0.1", 9000)),
        )
        monkeypatch.undo()

    run(main())


def test_no_such_host(run: Run[Any]) -> None:
    async def main() -> None:
        for host in ("no-such-host.invalid", "a" * 70 + ".test"):
            with pytest.raises(OSError):
                await look_up(TcpAddress(host, 9000))

    run(main())


def answer(*records: tuple[int, int, int, str]) -> Callable[..., Any]:
    def resolve(name: str, kind: object, lifetime: float) -> list[Any]:
        assert name == "_fcgi._tcp.app.test"
        assert lifetime <= 5
        return [
            SimpleNamespace(
                priority=priority,
                weight=weight,
                port=port,
                target=SimpleNamespace(to_text=lambda omit_final_dot, host=host: host),
            )
            for priority, weight, port, host in records
        ]

    return resolve


def test_srv_records(run: Run[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import dns.resolver

    records = answer((10, 60, 9001, "127.0.0.1"), (20, 0, 9002, "127.0.0.2"))
    monkeypatch.setattr(dns.resolver, "resolve", records)

    async def main() -> None:
        assert await look_up(SrvAddress("_fcgi._tcp.app.test")) == (
            Found(TcpAddress("127.0.0.1", 9001), 10, 60),
            Found(TcpAddress("127.0.0.2", 9002), 20, 1),
        )

    run(main())


def test_an_srv_host_that_is_not_there_is_left_out(
    run: Run[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dns.resolver

    good, bad = (1, 1, 9001, "127.0.0.1"), (1, 1, 9001, "no-such-host.invalid")
    monkeypatch.setattr(dns.resolver, "resolve", answer(bad, good))

    async def main() -> None:
        name = SrvAddress("_fcgi._tcp.app.test")
        assert [str(each.address) for each in await look_up(name)] == ["127.0.0.1:9001"]
        for records in ((bad,), ((0, 0, 0, "."),), ()):
            monkeypatch.setattr(dns.resolver, "resolve", answer(*records))
            with pytest.raises(OSError):
                await look_up(name)

    run(main())


def test_a_name_server_that_fails(run: Run[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import dns.exception
    import dns.resolver

    def resolve(*_: object, **__: object) -> None:
        raise dns.exception.Timeout

    monkeypatch.setattr(dns.resolver, "resolve", resolve)

    async def main() -> None:
        with pytest.raises(OSError, match="SRV _fcgi"):
            await look_up(SrvAddress("_fcgi._tcp.app.test"))

    run(main())


def test_dnspython_is_loaded_for_srv_alone() -> None:
    code = "import sys, tetrapylon.adapters.connections; assert 'dns' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
