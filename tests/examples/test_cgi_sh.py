"""examples/cgi-sh."""

from __future__ import annotations

from typing import Any


def test_cgi_sh(copy_example: Any, start_example: Any) -> None:
    folder = copy_example("cgi-sh")
    running = start_example(folder)
    facts = running.get("/facts.sh/below")
    assert facts.status == 200
    assert "asked by 127.0.0.1 for /facts.sh/below." in facts.text

    # What a visitor writes is data: decoded once, escaped, never a command.
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    words = b"name=%C3%89mile+%26+co&words=<b>%24(id)%60id%60%0Asecond+line%2541"
    answer = running.request("POST", "/guests.sh", words, form)
    assert (answer.status, answer.headers["Location"]) == (303, "/guests.sh")
    page = running.get("/guests.sh")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    line = "<li>Émile &amp; co: &lt;b&gt;$(id)`id`second line%41</li>"
    assert line in page.text
    assert (folder / "guests.txt").read_text() == "Émile & co: <b>$(id)`id`second line%41\n"

    assert running.request("POST", "/guests.sh", b"words=x", form).status == 422
    assert running.request("POST", "/guests.sh", b"name=" + b"x" * 5000, form).status == 413
    refused = running.request("PUT", "/guests.sh", b"x")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD, POST")
    missing = running.get("/guests.sh/nobody")
    assert (missing.status, missing.text) == (404, "There is one page in this book.\n")
    assert running.get("/nothing.sh").status == 404


def test_countdown_is_streamed(copy_example: Any, start_example: Any) -> None:
    running = start_example(copy_example("cgi-sh"))
    connection = running.connect()
    try:
        connection.request("GET", "/countdown.sh")
        response = connection.getresponse()
        assert response.readline() == b"3\n"
        # The script still sleeps before its other lines: they have not been sent.
        assert "countdown.sh" not in running.stdout_text()
        assert response.read() == b"2\n1\nGo.\n"
    finally:
        connection.close()
