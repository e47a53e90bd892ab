"""Things to do, in Bottle: form, JSON, errors, streaming."""

import json
import threading

from bottle import Bottle, abort, redirect, request, response, template

app = Bottle()
tasks: list[str] = []
lock = threading.Lock()

PAGE = """<!doctype html>
<html lang="en"><title>To do</title><h1>To do</h1>
<ol>
% for task in tasks:
<li>{{task}}</li>
% end
</ol>
<form method="post" action="{{action}}"><label>Task <input name="task"></label>
<button>Add</button></form>
</html>
"""


@app.get("/")
def show():
    with lock:
        return template(PAGE, tasks=list(tasks), action=app.get_url("/"))


@app.post("/")
def add():
    task = (request.forms.task or "").strip()
    if not task:
        abort(422, "An empty task.")
    with lock:
        tasks.append(task)
    redirect(request.script_name, 303)


@app.get("/items.json")
def items():
    with lock:
        return {"tasks": list(tasks)}


@app.get("/items.ndjson")
def stream():
    """One JSON text a line: a generator is sent as it goes."""
    response.content_type = "application/x-ndjson"
    with lock:
        copy = list(tasks)
    for task in copy:
        yield json.dumps({"task": task}) + "\n"


@app.error(404)
@app.error(422)
def explain(error):
    return f"<!doctype html><title>{error.status}</title><p>{error.status_line}</p>\n"
