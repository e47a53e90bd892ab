"""The demonstration from an installed wheel, alone in its environment.

usage: smoke.py /path/to/tetrapylon
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading

PROTOCOLS = ("cgi", "fastcgi", "wsgi", "asgi")


def main(command: str) -> int:
    """Start the demonstration, ask each mirror, stop it; return an exit code."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [command, "demo", "--port", "0"],
            cwd=folder,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "LANG": "C.UTF-8"},
        )
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            assert process.stderr is not None
            seen = ""
            for line in process.stderr:
                seen += line
                found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
                if found:
                    break
            else:
                print(f"the demonstration did not start:\n{seen}")
                return 1
            threading.Thread(target=process.stderr.read, daemon=True).start()
            port = int(found[1])
            for protocol in PROTOCOLS:
                client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                client.request("POST", f"/{protocol}/mirror?a=1", body=b"hello")
                answer = client.getresponse()
                mirrored = json.loads(answer.read())
                assert answer.status == 200, answer.status
                assert mirrored["protocol"].lower().startswith(protocol), mirrored
                assert mirrored["body_length"] == 5, mirrored
                assert mirrored["script_name"] == f"/{protocol}", mirrored
                client.close()
                print(f"{protocol}: mirrored")
            process.send_signal(signal.SIGTERM)
            code = process.wait(20)
            print(f"stopped with {code}")
            return os.EX_OK if code == 0 else 1
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
