"""examples/cgi-c: compiled by its Makefile."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest


@pytest.mark.interop
def test_cgi_c(copy_example: Any, start_example: Any) -> None:
    folder = copy_example("cgi-c")
    subprocess.run(["make", "-s"], cwd=folder, check=True)
    running = start_example(folder)
    assert running.request("POST", "/sum", b"1\n2\n39\n").text == "42 in 3 lines\n"
    numbers = "".join(f"{number}\n" for number in range(1, 200_001)).encode()
    assert running.request("POST", "/sum", numbers).text == "20000100000 in 200000 lines\n"
    # The last line may lack its end; a body of no lines is a sum, too.
    assert running.request("POST", "/sum", b"-1\n43").text == "42 in 2 lines\n"
    assert running.request("POST", "/sum", b"").text == "0 in 0 lines\n"
    for body in (b"1\none\n", b"1\n\n2\n", b"1\n" + b"9" * 40, b"9223372036854775807\n1\n"):
        answer = running.request("POST", "/sum", body)
        assert (answer.status, answer.text[:7]) == (422, "Line 2 ")
    refused = running.get("/sum")
    assert (refused.status, refused.headers["Allow"]) == (405, "POST")
