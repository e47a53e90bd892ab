#!/usr/bin/env python3
"""The days between two dates: a form, a JSON interface, and errors with a status."""

import datetime
import html
import json
import os
import sys
from urllib.parse import parse_qs

PAGE = """<!doctype html>
<html lang="en"><title>Days</title><h1>Days between two dates</h1>
<form><input type="date" name="from" value="{start}"> to <input type="date" name="to" value="{end}">
<button>Count</button></form>
<p>{result}</p></html>
"""


def answer(status, content_type, body):
    sys.stdout.write(f"Status: {status}\nContent-Type: {content_type}; charset=utf-8\n\n{body}\n")


def days(start, end):
    return (datetime.date.fromisoformat(end) - datetime.date.fromisoformat(start)).days


def show_page(query):
    start, end = query.get("from", ""), query.get("to", "")
    status, result = "200 OK", ""
    if start or end:
        try:
            result = f"{days(start, end)} days"
        except ValueError as error:
            status, result = "422 Unprocessable Content", f"{error}"
    answer(status, "text/html", PAGE.format_map({
        "start": html.escape(start), "end": html.escape(end), "result": html.escape(result)
    }))  # fmt: skip


def answer_json(body):
    try:
        question = json.loads(body)
        result = {"days": days(question["from"], question["to"])}
    except (ValueError, KeyError, TypeError) as error:
        answer("422 Unprocessable Content", "application/json", json.dumps({"error": str(error)}))
    else:
        answer("200 OK", "application/json", json.dumps(result))


def main():
    method = os.environ["REQUEST_METHOD"]
    if method in ("GET", "HEAD"):
        query = parse_qs(os.environ["QUERY_STRING"])
        show_page({name: values[-1] for name, values in query.items()})
    elif method == "POST":
        length = int(os.environ.get("CONTENT_LENGTH") or 0)
        if length > 65536:
            answer("413 Content Too Large", "text/plain", "64 KiB will do.")
        else:
            answer_json(sys.stdin.buffer.read(length))
    else:
        sys.stdout.write("Allow: GET, HEAD, POST\n")
        answer("405 Method Not Allowed", "text/plain", "GET or POST.")


if __name__ == "__main__":
    main()
