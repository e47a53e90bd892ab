"""examples/mirror: the demonstration's files, from the tree."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "examples" / "mirror"


def test_mirror(gateway: Any, tmp_path: Path) -> None:
    text = (FOLDER / "tetrapylon.toml").read_text()
    changes = {
        "127.0.0.1:8000": "127.0.0.1:0",
        '"python3"': json.dumps(sys.executable),
        'PATH = "': f'PATH = "{Path(sys.executable).parent}:',
        '"../../': f'"{FOLDER.parents[1]}/',
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    running = gateway(text)
    answers = [running.get(f"/{gate}/mirror") for gate in ("cgi", "fastcgi", "wsgi", "asgi")]
    assert [answer.json()["protocol"] for answer in answers] == ["CGI", "FastCGI", "WSGI", "ASGI"]
    assert running.get("/").status == 200
    assert running.get("/../mirror_cgi.py").status in (400, 404)
