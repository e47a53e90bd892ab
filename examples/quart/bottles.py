"""Messages in bottles, in Quart: form, JSON, errors, streaming both ways."""

import asyncio

from quart import Quart, abort, redirect, render_template_string, request, url_for

app = Quart(__name__)
bottles: list[str] = []

PAGE = """<!doctype html>
<html lang="en"><title>The sea</title><h1>{{ bottles | length }} bottles in the sea</h1>
<form method="post"><label>Message <input name="message" required></label>
<button>Throw</button></form>
</html>"""


@app.get("/")
async def sea():
    return await render_template_string(PAGE, bottles=bottles)


@app.post("/")
async def throw():
    message = (await request.form).get("message", "").strip()
    if not message:
        abort(422, "An empty bottle.")
    bottles.append(message)
    return redirect(url_for("sea"), code=303)


@app.get("/bottles/<int:number>")
async def find(number: int):
    if not 1 <= number <= len(bottles):
        abort(404, "No such bottle was found.")
    return {"number": number, "message": bottles[number - 1]}


@app.post("/weigh")
async def weigh():
    """Count a body as it arrives, without keeping it."""
    weight = 0
    async for piece in request.body:
        weight += len(piece)
    return {"bytes": weight}


@app.get("/waves")
async def waves():
    count = request.args.get("count", 3, type=int)

    async def roll():
        for number in range(1, count + 1):
            yield f"wave {number}\n".encode()
            await asyncio.sleep(0.1)

    return roll(), {"Content-Type": "text/plain"}


@app.errorhandler(404)
@app.errorhandler(422)
async def explain(error):
    return {"error": error.description}, error.code
