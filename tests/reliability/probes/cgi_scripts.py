"""The CGI scripts under test, written into a folder with the right first lines.

Shell where a shell will do: it starts fast, and leaves signals as it finds them.
"""

from __future__ import annotations

import sys
from pathlib import Path

_SH = "#!/bin/sh\n"
_PYTHON = f"#!{sys.executable} -ISB\n"
_OK = "printf 'Content-Type: text/plain\\n\\n'\n"

SCRIPTS: dict[str, str] = {
    "ok": _SH + _OK + "echo ok\n",
    # Everything a check may want to know, as JSON; the body is read to its end.
    "echo": _PYTHON
    + r"""
import hashlib, json, os, sys
length, digest = 0, hashlib.sha256()
while piece := os.read(0, 65536):
    length += len(piece)
    digest.update(piece)
if os.environ.get("RECORD"):
    with open(os.environ["RECORD"], "a") as record:
        record.write(json.dumps({"app": "cgi", "event": "body", "length": length}) + "\n")
environ = {k.decode("latin-1"): v.decode("latin-1") for k, v in os.environb.items()}
said = dict(environ, body_length=length, body_sha256=digest.hexdigest(), argv=sys.argv[1:])
text = json.dumps(said)
print("Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text), end="")
""",
    "dump": _SH
    + _OK
    + r"""
echo "== env"; cat /proc/$$/environ | tr '\0' '\n'
echo "== fds"; ls /proc/$$/fd
echo "== cwd"; pwd -P
echo "== status"; cat /proc/self/status
echo "== limits"; cat /proc/self/limits
echo "== ids"; echo "pid $$ stat $(cat /proc/$$/stat)"
echo "== argv"; tr '\0' '\n' < /proc/$$/cmdline
""",
    # E1. Each writes its process group down first.
    "endless": _SH
    + 'echo $$ > "$DIARY.pid"\n'
    + "trap 'echo TERM >> \"$DIARY.term\"; exit 0' TERM\n"
    + "sleep 1000 &\nwhile :; do sleep 0.1; done\n",
    "stubborn": _SH
    + 'echo $$ > "$DIARY.pid"\n'
    + "trap '' TERM\nsleep 1000 &\nwhile :; do sleep 1; done\n",
    # E2. When it ended is the last thing it says.
    "silent-0": _SH + 'date +%s.%N > "$DIARY.end"\nexit 0\n',
    "silent-1": _SH + 'date +%s.%N > "$DIARY.end"\nexit 1\n',
    "silent-segv": _SH + 'date +%s.%N > "$DIARY.end"\nkill -SEGV $$\n',
    "bad-interpreter": "#!/no/such/interpreter\n",
    # E3
    "no-blank-line": _SH + "printf 'Content-Type: text/plain\\n'\n",
    "big-head": _SH + "printf 'X-Big: '; head -c 1048576 /dev/zero | tr '\\0' a\n"
    "printf '\\nContent-Type: text/plain\\n\\nbody'\n",
    "nul-head": _SH + "printf 'Content-Type: text/plain\\nX-Bad: a\\0b\\n\\nbody'\n",
    "cr-head": _SH + "printf 'Content-Type: text/plain\\nX-Bad: a\\rb\\n\\nbody'\n",
    "name-head": _SH + "printf 'Content-Type: text/plain\\nX Bad: a\\n\\nbody'\n",
    "status-99999": _SH + "printf 'Status: 99999 No\\nContent-Type: text/plain\\n\\nbody'\n",
    "length-plus": _SH + "printf 'Content-Type: text/plain\\nContent-Length: +5\\n\\n12345'\n",
    "length-twice": _SH
    + "printf 'Content-Type: text/plain\\nContent-Length: 5\\nContent-Length: 4\\n\\n12345'\n",
    "length-and-coding": _SH + "printf 'Content-Type: text/plain\\nContent-Length: 5\\n"
    "Transfer-Encoding: chunked\\n\\n12345'\n",
    # E4
    "again": _SH + "echo run >> \"$DIARY.runs\"\nprintf 'Location: /cgi/again\\n\\n'\n",
    # E5
    "gibibyte": _SH
    + 'echo $$ > "$DIARY.pid"\n'
    + "printf 'Content-Type: application/octet-stream\\n\\n'\nexec head -c 1073741824 /dev/zero\n",
    # E7. Each writes down what must not outlive its time.
    "deaf": _SH + _OK + 'echo ok\necho $$ > "$DIARY.deaf"\nexec >&- 2>&-\nsleep 1000\n',
    "daemon": _PYTHON
    + "import os, sys, time\n"
    + "print('Content-Type: text/plain\\n\\nok', flush=True)\n"
    + "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
    + "        open(os.environ['DIARY'] + '.daemon', 'w').write(str(os.getpid()))\n"
    + "        time.sleep(1000)\n    os._exit(0)\n"
    + "os.wait()\n"
    + "while not os.path.exists(os.environ['DIARY'] + '.daemon'):\n    time.sleep(0.01)\n",
    # E10
    "pause": _SH + _OK + "exec sleep 1\n",
    # Two children each, nine generations: 1023 processes that stay.
    "bomb": _SH
    + _OK
    + 'bomb() { if [ "$1" -lt 9 ]; then bomb $(($1 + 1)) & bomb $(($1 + 1)) & fi\n'
    + "exec sleep 1000; }\n"
    + "echo begun\nbomb 0\n",
    "glutton": _SH
    + "all=$(head -c 1073741824 /dev/zero | tr '\\0' a) || exit\n"
    + _OK
    + "echo full\n",
    # E6
    "loud": _PYTHON
    + "import os\nblock = b'loud ' * 13107 + b'\\n'\n"
    + "for _ in range(16384):\n    left = memoryview(block)\n"
    + "    while left:\n        left = left[os.write(2, left):]\n"
    + "os.write(1, b'Content-Type: text/plain\\n\\nquiet again\\n')\n"
    + "open(os.environ['DIARY'] + '.done', 'w').close()\n",
    # E8
    "short": _SH + "printf 'Content-Type: text/plain\\nContent-Length: 100\\n\\n0123456789'\n",
    # The pause makes sure that the head is on its way before the end is seen.
    "short-late": _SH + "printf 'Content-Type: text/plain\\nContent-Length: 100\\n\\n01234'\n"
    "sleep 0.3\nprintf 56789\n",
    "long": _SH + "printf 'Content-Type: text/plain\\nContent-Length: 4\\n\\n0123456789'\n",
    "long-late": _SH + "printf 'Content-Type: text/plain\\nContent-Length: 4\\n\\n0123'\n"
    "sleep 0.3\nprintf 456789\n",
    # E9
    "ignores": _SH + 'echo $$ > "$DIARY.pid"\n' + _OK + "echo ignored\n",
    "counts": _SH + _OK + "wc -c\n",
    "lingers": _SH + 'echo $$ > "$DIARY.pid"\n' + _OK + "echo begun\nsleep 1000\n",
    # B7
    "stream": _PYTHON
    + "import os\nos.write(1, b'Content-Type: application/octet-stream\\n\\n')\n"
    + "while True:\n    os.write(1, bytes(65536))\n",
    # G5
    "204": _SH + "printf 'Status: 204 No Content\\n\\nbody'\n",
    "304": _SH + "printf 'Status: 304 Not Modified\\n\\nbody'\n",
    "103": _SH + "printf 'Status: 103 Early\\nContent-Type: text/plain\\n\\nbody'\n",
    "100": _SH + "printf 'Status: 100 Continue\\nContent-Type: text/plain\\n\\nbody'\n",
    "hop": _SH
    + "printf 'Content-Type: text/plain\\nConnection: x-hop\\nKeep-Alive: timeout=1000\\n"
    "Upgrade: h2c\\nProxy-Connection: keep-alive\\nTransfer-Encoding: chunked\\n\\nbody'\n",
    "crlf-pair": _SH + "printf 'Content-Type: text/plain\\nX-Bad: a\\r\\r\\n\\nbody'\n",
    # D6
    "sendfile": _SH + "printf 'Content-Type: text/plain\\nX-Sendfile: /etc/passwd\\n\\nbody'\n",
    "sendfile-dots": _SH
    + "printf 'Content-Type: text/plain\\nX-Sendfile: ../../etc/passwd\\n\\n'\n",
    "sendfile-link": _SH
    + "printf 'Content-Type: text/plain\\nX-Sendfile: files/link-out\\n\\nbody'\n",
}


def write_scripts(folder: Path, *names: str) -> None:
    """Write the scripts, or the named ones, and make them executable."""
    for name in names or SCRIPTS:
        path = folder / name
        path.write_text(SCRIPTS[name])
        path.chmod(0o755)
