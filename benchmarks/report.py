"""What was measured, as text: for the terminal, for docs/benchmarks.md, as a chart."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from measuring import Figures, Mark, Result, is_reached
from processes import CORES

DOCS = Path(__file__).resolve().parent.parent / "docs"
DOCUMENT = DOCS / "benchmarks.md"

BAR = 18
LABELS = 190
WIDTH = 760
SCALE = 400
CHART = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" \
height="{height}" role="img" font-family="system-ui, sans-serif" font-size="13">
<title>{title}</title>
<style>
  text {{ fill: #24292f }}
  .case {{ font-weight: 600 }}
  .ours {{ fill: #0a7f5a }}
  .peer {{ fill: #9aa4af }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #e6edf3 }}
    .ours {{ fill: #2fbf8f }}
    .peer {{ fill: #6e7681 }}
  }}
</style>
{bars}
</svg>
"""


def is_ours(name: str) -> bool:
    """Tell whether a server is this gateway, warm or not."""
    return name.startswith("tetrapylon")


def subject(result: Result) -> str:
    """Return whose rate the others are held against."""
    return result.case.marks[-1].subject


def ranked(result: Result) -> list[tuple[str, Figures]]:
    """Return the servers, the fastest first."""
    return sorted(result.figures.items(), key=lambda pair: -pair[1].rate)


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return ""
    return f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:.0f}"


def _ratio(result: Result, name: str) -> str:
    own = result.figures.get(subject(result))
    if own is None or name == subject(result):
        return ""
    return f"{own.rate / result.figures[name].rate:.2f}"


def verdicts(result: Result) -> list[str]:
    """Return for each mark what it asks for and what came out."""
    return [_verdict(result, mark) for mark in result.case.marks]


def _verdict(result: Result, mark: Mark) -> str:
    who = "" if mark.subject == "tetrapylon" else f"{mark.subject}: "
    if len(mark.rivals) > 1:
        rivals = "the best of the others"
    else:
        rivals = mark.rivals[0]
    aim = f"{who}p99 ≤ {rivals}'s" if mark.is_p99 else f"{who}≥ {mark.least:g} × {rivals}"
    found = result.ratio(mark)
    if found is None:
        return f"{aim}: not measured"
    rival, ratio = found
    who_best = f" ({rival})" if len(mark.rivals) > 1 else ""
    outcome = "" if is_reached(mark, ratio) else ", missed"
    return f"{aim}: {ratio:.2f}{who_best}{outcome}"


def as_text(result: Result) -> str:
    """Return a result for the terminal."""
    lines = [f"{result.case.name}: {result.case.title}"]
    lines.append(
        f"  {'':<24} {'':<16} {'req/s':>9} {'ours ×':>7} {'p50 ms':>8} {'p99 ms':>8} CPU ms"
    )
    for name, figures in ranked(result):
        lines.append(
            f"  {name:<24} {figures.version:<16} {_rate(figures.rate):>9}"
            f" {_ratio(result, name):>7} {figures.p50_ms:>8.2f} {figures.p99_ms:>8.2f}"
            f" {_time(figures.cpu_ms)}"
        )
    lines += [f"  {name}: {' '.join(why.split())}" for name, why in result.failures.items()]
    lines += [f"  {verdict}" for verdict in verdicts(result)]
    return "\n".join(lines) + "\n"


def environment(rounds: int, seconds: float) -> str:
    """Return where and how it was measured, in a sentence."""
    today = datetime.date.today()
    return (
        f"{_processor()}, {len(CORES)} cores, Linux {platform.release().split('-')[0]}, Python"
        f" {platform.python_version()}; medians of {rounds} rounds of {seconds:g} s;"
        f" {today.day} {today:%B %Y}."
    )


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = re.findall(r"model name\s*: (.*)", file.read())
    return names[0].strip() if names else platform.machine()


def as_markdown(results: Sequence[Result], chart: str, where: str) -> str:
    """Return the part of docs/benchmarks.md that shows ``results``."""
    parts = [f"![Requests per second, relative to the fastest]({chart})", where]
    for result in results:
        parts.append(f"### {result.case.title}")
        ours = subject(result)
        rows = [
            f"| | requests/s | {ours} answers | p50, ms | p99, ms | CPU, ms |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for name, figures in ranked(result):
            what = f"**{name}**" if is_ours(name) else f"{name} {figures.version}"
            ratio = _ratio(result, name)
            rows.append(
                f"| {what} | {_rate(figures.rate)} | {ratio + ' ×' if ratio else ''}"
                f" | {_time(figures.p50_ms)} | {_time(figures.p99_ms)}"
                f" | {_time(figures.cpu_ms)} |"
            )
        if result.figures:
            parts.append("\n".join(rows))
        parts.append("Aims: " + "; ".join(verdicts(result)) + ".")
        if result.failures:
            missing = "; ".join(
                f"{name}: {' '.join(why.split())}" for name, why in result.failures.items()
            )
            parts.append(f"No result: {missing}.")
    return "\n\n".join(parts)


def as_chart(results: Iterable[Result], title: str) -> str:
    """Return bars of requests per second, each case by its fastest, as an SVG."""
    bars = []
    y = 8
    for result in results:
        if not result.figures:
            continue
        y += 16
        bars.append(f'<text class="case" x="0" y="{y}">{escape(result.case.title)}</text>')
        y += 8
        best = max(figures.rate for figures in result.figures.values())
        for name, figures in ranked(result):
            width = max(1, round(SCALE * figures.rate / best))
            kind = "ours" if is_ours(name) else "peer"
            base = y + BAR - 5
            bars.append(
                f'<text x="{LABELS - 8}" y="{base}" text-anchor="end">{escape(name)}</text>'
                f'<rect class="{kind}" x="{LABELS}" y="{y + 1}" width="{width}"'
                f' height="{BAR - 3}" rx="2"/>'
                f'<text x="{LABELS + width + 6}" y="{base}">{_rate(figures.rate)}/s</text>'
            )
            y += BAR
        y += 10
    return CHART.format(width=WIDTH, height=y, title=escape(title), bars="\n".join(bars))


def write(suite: str, title: str, results: Sequence[Result], where: str) -> None:
    """Put a suite's tables between its markers in docs/benchmarks.md, and write its chart."""
    chart = f"benchmarks-{suite}.svg"
    begin, end = f"<!-- {suite} -->", f"<!-- end of {suite} -->"
    text = DOCUMENT.read_text()
    before, marker, rest = text.partition(begin)
    _, other, after = rest.partition(end)
    if not marker or not other:
        raise SystemExit(f"{DOCUMENT} has no {begin} … {end}")
    tables = as_markdown(results, chart, where)
    _replace(DOCUMENT, f"{before}{begin}\n\n{tables}\n\n{end}{after}")
    _replace(DOCS / chart, as_chart(results, f"{title}: requests per second"))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    os.replace(temporary, path)
