"""The benchmarks start every peer, and all give the same answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop

RUN = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"
PROGRAMS = {
    "lighttpd": "lighttpd",
    "apache2": "apache2-bin",
    "nginx": "nginx-light",
    "fcgiwrap": "fcgiwrap",
    "caddy": "caddy",
    "gcc": "gcc",
    "perl": "perl",
    "git": "git",
    "wrk": "wrk",
}


@pytest.fixture
def measure(find_program: Any, tmp_path: Path) -> Any:
    for name, package in PROGRAMS.items():
        find_program(name, package=package)

    def measure(*arguments: str) -> Any:
        found = tmp_path / "figures.json"
        done = subprocess.run(
            [sys.executable, str(RUN), "--json", str(found), *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(found.read_text())

    return measure


def test_all_servers_answer_alike(measure: Any) -> None:
    cases = measure("--rounds", "0", "cgi", "fastcgi")
    assert len(cases) == 7
    assert {name: case["failures"] for name, case in cases.items() if case["failures"]} == {}


def test_a_round_gives_figures_of_all_servers(measure: Any) -> None:
    cases = measure("--rounds", "1", "--seconds", "1", "cgi c", "fastcgi 16")
    for case in cases.values():
        assert case["failures"] == {}
        assert len(case["figures"]) >= 4
        for figures in case["figures"].values():
            assert figures["rate"] > 0
            assert 0 < figures["p50_ms"] <= figures["p99_ms"]
            # There is no control group where we may not make one.
            assert figures["cpu_ms"] is None or figures["cpu_ms"] > 0
        assert not [mark for mark in case["marks"] if "not measured" in mark]
