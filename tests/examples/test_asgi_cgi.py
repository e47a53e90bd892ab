"""examples/asgi-cgi."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def test_asgi_cgi(copy_example: Any, start_example: Any) -> None:
    # `env python3` finds this interpreter, wherever it is installed.
    found = {'PATH = "': f'PATH = "{Path(sys.executable).parent}:'}
    running = start_example(copy_example("asgi-cgi"), replace=found)
    at = "/cgi-bin/units.py"
    link = f'<a href="http://127.0.0.1:{running.port}{at}/kelvin/20">20 kelvin</a>'
    assert link in running.get(f"{at}/").text
    assert running.get(at).headers["Location"].endswith(f"{at}/")
    assert running.get(f"{at}/fahrenheit/451").text == "232.8 °C\n"
    missing = running.get(f"{at}/rankine/1")
    assert (missing.status, missing.text) == (404, "There is no unit rankine.\n")
    numbers = "".join(f"{number}\n" for number in range(1, 20_001)).encode()
    assert running.request("POST", f"{at}/mean", numbers).json() == {
        "count": 20000,
        "mean": 10000.5,
    }
    assert running.request("POST", f"{at}/mean").status == 422
