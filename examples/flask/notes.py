"""A notebook in Flask: form, JSON, errors, streaming."""

import itertools
import threading

from flask import Flask, Response, abort, redirect, render_template_string, request, url_for

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 64 * 1024

# The gateway calls the application in several threads.
notes: dict[int, str] = {}
numbers = itertools.count(1)
lock = threading.Lock()

PAGE = """<!doctype html>
<html lang="en"><title>Notes</title><h1>Notes</h1>
<ul>{% for number, text in notes.items() %}<li id="{{ number }}">{{ text }}</li>{% endfor %}</ul>
<form method="post"><label>Note <input name="text" required></label> <button>Keep</button></form>
</html>"""


def keep(text: str) -> int:
    with lock:
        number = next(numbers)
        notes[number] = text
    return number


@app.get("/")
def show():
    with lock:
        return render_template_string(PAGE, notes=dict(notes))


@app.post("/")
def keep_from_form():
    text = request.form["text"].strip() or abort(422, "An empty note.")
    return redirect(url_for("show", _anchor=str(keep(text))), code=303)


@app.post("/api/notes")
def keep_from_json():
    text = (request.get_json() or {}).get("text")
    if not isinstance(text, str) or not text:
        abort(422, "The key 'text' is missing.")
    number = keep(text)
    location = url_for("get_note", number=number)
    return {"number": number, "text": text}, 201, {"Location": location}


@app.get("/api/notes/<int:number>")
def get_note(number: int):
    if number not in notes:
        abort(404, f"There is no note {number}.")
    return {"number": number, "text": notes[number]}


@app.get("/export")
def export():
    """All notes as text; a generator leaves line by line, and takes no memory."""
    copies = request.args.get("copies", 1, type=int)
    with lock:
        lines = [f"{number}\t{text}\n" for number, text in notes.items()]
    return Response((line for _ in range(copies) for line in lines), mimetype="text/plain")


@app.errorhandler(404)
@app.errorhandler(422)
def explain(error):
    if request.path.startswith("/api/"):
        return {"error": error.description}, error.code
    return f"<!doctype html><title>{error.name}</title><p>{error.description}</p>", error.code
