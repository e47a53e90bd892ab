"""examples/cgi-perl."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.interop  # /usr/bin/perl


def test_cgi_perl(copy_example: Any, start_example: Any) -> None:
    running = start_example(copy_example("cgi-perl"))
    page = running.get("/words.pl")
    assert page.status == 200
    assert "<textarea" in page.text
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    text = b"text=the+fox+%26+the+%C3%89lan+THE+%3Cb%3E"
    counted = running.request("POST", "/words.pl", text, form)
    assert counted.status == 200
    rows = ["<tr><td>the</td><td>3</td></tr>", "<tr><td>élan</td><td>1</td></tr>"]
    assert all(row in counted.text for row in rows)
    assert running.has_logged("counted 4 words")
    assert running.request("POST", "/words.pl", b"other=1", form).status == 422
    assert running.request("POST", "/words.pl", b"text=" + b"x" * 70000, form).status == 413
    refused = running.request("PUT", "/words.pl", b"x")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD, POST")
