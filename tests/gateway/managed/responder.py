"""A FastCGI application of one thread and no library, which starts in an instant.

`python -IS responder.py [FILE]` takes one connection after the other from descriptor
0 and answers each request with facts as JSON. The query says what else it does:
`sleep=SECONDS`, `hold=MIB`, `exit=CODE`, or `leave=CODE`, which is an exit after the
answer. FILE is its version: read at the start and part of the facts; `broken` in it
ends the start.
"""

import json
import os
import socket
import struct
import sys
import time

VERSION = ""
HEADER = struct.Struct("!BBHHBx")


def records(connection):
    buffer = b""
    while True:
        while len(buffer) >= 8:
            _, kind, _, length, padding = HEADER.unpack(buffer[:8])
            if len(buffer) < 8 + length + padding:
                break
            yield kind, buffer[8 : 8 + length]
            buffer = buffer[8 + length + padding :]
        data = connection.recv(65536)
        if not data:
            return
        buffer += data


def pairs(data):
    position = 0

    def length():
        nonlocal position
        size = data[position]
        if size < 128:
            position += 1
            return size
        position += 4
        return struct.unpack("!I", data[position - 4 : position])[0] & 0x7FFFFFFF

    while position < len(data):
        name, value = length(), length()
        yield (
            data[position : position + name].decode(),
            data[position + name : position + name + value].decode(),
        )
        position += name + value


def serve(connection):
    """Answer one request; without one, the caller has only knocked."""
    params = b""
    for kind, content in records(connection):
        if kind == 4:
            params += content
        if kind == 5 and not content:
            break
    else:
        return
    global count, held
    count += 1
    environ = dict(pairs(params))
    query = dict(part.split("=") for part in environ["QUERY_STRING"].split("&") if part)
    if "exit" in query:
        os._exit(int(query["exit"]))
    if "hold" in query:
        held += os.urandom(1) * (int(query["hold"]) << 20)
    time.sleep(float(query.get("sleep", 0)))
    facts = {
        "pid": os.getpid(),
        "count": count,
        "version": VERSION,
        "uid": os.getresuid(),
        "gid": os.getresgid(),
        "groups": os.getgroups(),
        "environ": dict(os.environ),
        "umask": os.umask(0),
    }
    os.umask(facts["umask"])
    body = b"Content-Type: application/json\r\n\r\n" + json.dumps(facts).encode()
    answer = HEADER.pack(1, 6, 1, len(body), 0) + body + HEADER.pack(1, 3, 1, 8, 0) + bytes(8)
    connection.sendall(answer)
    if "leave" in query:
        os._exit(int(query["leave"]))


if __name__ == "__main__":
    count, held = 0, b""
    if len(sys.argv) > 1:
        with open(sys.argv[1]) as file:
            VERSION = file.read().strip()
    if VERSION == "broken":
        print("I cannot start like that", file=sys.stderr)
        sys.exit(4)
    listener = socket.socket(fileno=0)
    while True:
        with listener.accept()[0] as connection:
            serve(connection)
