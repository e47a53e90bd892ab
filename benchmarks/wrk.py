"""wrk: one load on one server, and what it found.

wrk's own percentiles are rounded to its units; a script prints what it counted.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 20
REPORT = """
done = function(summary, latency, requests)
  local errors = summary.errors
  print(string.format("@ %d %d %d %d %d %d %d %d %d", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
"""
POST = """
wrk.method = "POST"
wrk.body = string.rep("x", %d)
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one load found. ``errors`` says what went wrong; then it is no result."""

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float
    errors: str
    cpu_ms: float | None = None


def is_here() -> bool:
    """Tell whether there is a wrk."""
    return shutil.which("wrk") is not None


def write_script(folder: Path, *, post_bytes: int = 0) -> Path:
    """Write the Lua script that a load needs; with ``post_bytes`` it POSTs so many."""
    script = folder / f"load-{post_bytes}.lua"
    script.write_text(REPORT + (POST % post_bytes if post_bytes else ""))
    return script


def load(
    url: str, script: Path, *, connections: int, seconds: float, cores: Sequence[int] | None
) -> Reading:
    """Ask for ``url`` for ``seconds`` (whole ones, or 1) over kept connections."""
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", f"--timeout={TIMEOUT_S}s"]
    command = ["wrk", *options, "-s", str(script), url]
    if cores is not None:
        command[:0] = ["taskset", "-c", ",".join(map(str, cores))]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + 2 * TIMEOUT_S, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("@ "))
    requests, micros, p50, p99, *errors = map(int, line.split()[1:])
    kinds = ("connect", "read", "write", "status", "timeout")
    complaint = ", ".join(
        f"{count} {kind}" for kind, count in zip(kinds, errors, strict=True) if count
    )
    if not requests:
        complaint = complaint or "no answer"
    return Reading(requests, requests / (micros / 1e6), p50 / 1000, p99 / 1000, complaint)
