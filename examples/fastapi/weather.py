"""A weather station in FastAPI: checked JSON, errors, streaming, lifespan."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel, Field


class Reading(BaseModel):
    celsius: float = Field(ge=-90, le=60)
    station: str = "roof"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, list[Reading]]]:
    # What is yielded is in the state of every request.
    print("weather: the station is open", flush=True)
    yield {"readings": []}
    print("weather: the station is closed", flush=True)


app = FastAPI(title="Weather", lifespan=lifespan)


@app.get("/", response_class=HTMLResponse)
async def page(request: Request) -> str:
    return f"""<!doctype html><html lang="en"><title>Weather</title><h1>Weather</h1>
<p>{len(request.state.readings)} readings;
see <a href="{request.url_for("swagger_ui_html").path}">the interface</a>.</p></html>
"""


@app.post("/readings", status_code=201)
async def add(reading: Reading, request: Request) -> dict[str, int]:
    request.state.readings.append(reading)
    return {"number": len(request.state.readings)}


@app.get("/readings/{number}")
async def one(number: int, request: Request) -> Reading:
    if not 1 <= number <= len(request.state.readings):
        raise HTTPException(404, f"There is no reading {number}.")
    return request.state.readings[number - 1]


@app.get("/readings.ndjson")
async def stream(request: Request) -> StreamingResponse:
    lines = (reading.model_dump_json() + "\n" for reading in list(request.state.readings))
    return StreamingResponse(lines, media_type="application/x-ndjson")


@app.post("/import")
async def read_file(file: UploadFile, request: Request) -> dict[str, int]:
    """Readings from an uploaded file, one on each line."""
    count = 0
    for line in file.file:
        try:
            request.state.readings.append(Reading(celsius=float(line)))
        except ValueError:
            raise HTTPException(422, f"Line {count + 1} is not a temperature.") from None
        count += 1
    return {"imported": count}
