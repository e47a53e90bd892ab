"""A managed FastCGI application with a worker beside it and a daemon far from it.

`managed_fastcgi.py FOLDER` answers each request with what proc_pid_status(5) said of
the process at its first instruction, and whether root can be had again. Each process
writes its pid into a file in FOLDER, if it may.
"""

import json
import os
import signal
import socket
import struct
import sys
import time

with open("/proc/self/status") as file:
    STATUS = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
HEADER = struct.Struct("!BBHHBx")


def regains_root() -> bool:
    for regain in (lambda: os.setresuid(0, 0, 0), lambda: os.setresgid(0, 0, 0)):
        try:
            regain()
        except PermissionError:
            continue
        return True
    return False


def note(folder: str) -> None:
    try:
        with open(os.path.join(folder, str(os.getpid())), "w"):
            pass
    except OSError:
        pass


def become_daemon(folder: str) -> None:
    """Do as daemon(7) has it, and outlive whatever can be outlived."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    note(folder)
    while True:
        time.sleep(1000)


def records(connection: socket.socket):
    buffer = b""
    while True:
        while len(buffer) >= 8:
            _, kind, _, length, padding = HEADER.unpack(buffer[:8])
            if len(buffer) < 8 + length + padding:
                break
            yield kind, length
            buffer = buffer[8 + length + padding :]
        data = connection.recv(65536)
        if not data:
            return
        buffer += data


def serve() -> None:
    listener = socket.socket(fileno=0)
    text = json.dumps({**STATUS, "pid": os.getpid(), "regains_root": regains_root()})
    body = f"Content-Type: application/json\r\n\r\n{text}".encode()
    answer = HEADER.pack(1, 6, 1, len(body), 0) + body + HEADER.pack(1, 3, 1, 8, 0) + bytes(8)
    while True:
        with listener.accept()[0] as connection:
            if any(kind == 5 and not length for kind, length in records(connection)):
                connection.sendall(answer)


if __name__ == "__main__":
    note(sys.argv[1])
    become_daemon(sys.argv[1])
    if not os.fork():
        note(sys.argv[1])
    serve()
