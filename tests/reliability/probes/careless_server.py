"""A server that believes whatever it is sent: for `--self-test`, in place of the gateway.

It is what the framing checks are there to find: the first Content-Length by
``int()``, chunks of any spelling, bare line feeds, any Host, any path.
"""

from __future__ import annotations

import asyncio
import sys

from asgi_probe import record

IDLE_S = 0.2


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await asyncio.wait_for(reader.readline(), IDLE_S):
            length = 0
            fields = 0
            while (
                field := (await asyncio.wait_for(reader.readline(), IDLE_S)).strip()
            ) and fields < 20000:
                fields += 1
                name, _, value = field.partition(b":")
                if name.strip().lower() == b"content-length":
                    try:
                        length = int(value)
                    except ValueError:
                        length = 0
            body = await reader.readexactly(length) if 0 < length < 1 << 20 else b""
            words = line.split()
            path = (words[1] if len(words) > 1 else b"").decode("latin-1")
            record(app="careless", event="call", path=path)
            record(app="careless", event="body", path=path, length=len(body))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", file=sys.stderr, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
