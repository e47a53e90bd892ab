"""What the benchmarks write of figures: tables, aims and charts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The benchmarks' modules, which stand in no package, for one test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield {name: importlib.import_module(name) for name in ("report", "measuring", "run")}
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture
def report(modules: dict[str, ModuleType]) -> Any:
    return modules["report"]


@pytest.fixture
def result(modules: dict[str, ModuleType]) -> Any:
    """We are half as fast as Lighter and twice as fast as Heavier; Absent is absent."""
    measuring: Any = modules["measuring"]

    def figures(rate: float, p99_ms: float) -> Any:
        return measuring.Figures("1.0", rate, 1.234, p99_ms, 0.5, (rate,))

    case = measuring.Case(
        "cgi <c>",
        "a <C> program",
        (),
        marks=(
            measuring.Mark(0.4, ("Lighter",)),
            measuring.Mark(3.0, ("Heavier",)),
            measuring.Mark(0.4, ("Lighter", "Heavier")),
            measuring.Mark(1.0, ("Lighter",), is_p99=True),
            measuring.Mark(1.0, ("Absent",)),
        ),
    )
    servers = {
        "Heavier": figures(500.0, 9.0),
        "tetrapylon": figures(1000.0, 5.0),
        "Lighter": figures(2000.0, 4.0),
    }
    return measuring.Result(case, servers, {"Absent": "not installed\n(apt install absent)"})


def test_each_aim_says_what_came_out(report: Any, result: Any) -> None:
    assert report.verdicts(result) == [
        "≥ 0.4 × Lighter: 0.50",
        "≥ 3 × Heavier: 2.00, missed",
        "≥ 0.4 × the best of the others: 0.50 (Lighter)",
        "p99 ≤ Lighter's: 1.25, missed",
        "≥ 1 × Absent: not measured",
    ]


def test_the_table_has_the_fastest_first_and_names_who_is_absent(report: Any, result: Any) -> None:
    text = report.as_markdown([result], "chart.svg", "Somewhere.")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "| Lighter 1.0 | 2,000 | 0.50 × | 1.23 | 4 | 0.5 |",
        "| **tetrapylon** | 1,000 |  | 1.23 | 5 | 0.5 |",
        "| Heavier 1.0 | 500 | 2.00 × | 1.23 | 9 | 0.5 |",
    ]
    assert "No result: Absent: not installed (apt install absent)." in text
    assert "Absent: not installed (apt install absent)" in report.as_text(result)


def test_the_chart_is_xml_with_bars_in_proportion(report: Any, result: Any) -> None:
    tree = ElementTree.fromstring(report.as_chart([result], "CGI & others"))
    bars = [
        (bar.get("class"), int(bar.get("width", "0")))
        for bar in tree.iter("{http://www.w3.org/2000/svg}rect")
    ]
    assert bars == [("peer", 400), ("ours", 200), ("peer", 100)]


def test_writing_replaces_what_is_between_the_markers(
    report: Any, result: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("before\n<!-- cgi -->\nold\n<!-- end of cgi -->\nafter\n")
    monkeypatch.setattr(report, "DOCS", tmp_path)
    monkeypatch.setattr(report, "DOCUMENT", document)
    for _ in range(2):
        report.write("cgi", "CGI", [result], "Somewhere.")
        text = document.read_text()
        assert text.startswith("before\n<!-- cgi -->\n\n![")
        assert text.endswith(
            "missed; ≥ 1 × Absent: not measured.\n\nNo result: Absent:"
            " not installed (apt install absent).\n\n<!-- end of cgi -->\nafter\n"
        )
        assert "old" not in text
    assert (tmp_path / "benchmarks-cgi.svg").exists()
    with pytest.raises(SystemExit):
        report.write("fastcgi", "FastCGI", [result], "Somewhere.")


def test_the_page_has_a_place_for_each_suite(modules: dict[str, ModuleType], report: Any) -> None:
    text = report.DOCUMENT.read_text()
    for suite in modules["run"].SUITES:
        assert text.count(f"<!-- {suite} -->") == text.count(f"<!-- end of {suite} -->") == 1


def test_cases_are_chosen_by_suite_or_by_how_they_begin(modules: dict[str, ModuleType]) -> None:
    chosen = modules["run"].chosen
    assert [name for name, _ in chosen([])] == ["http", "cgi", "fastcgi"]
    ((name, cases),) = chosen(["fastcgi"])
    assert name == "fastcgi"
    assert len(cases) == 2
    assert [case.name for _, found in chosen(["cgi python", "WSGI"]) for case in found] == [
        "WSGI, GET, 8 threads",
        "cgi python",
        "cgi python imports",
    ]
    assert chosen(["nothing"]) == []
