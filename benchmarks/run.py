"""This gateway beside its peers: requests per second, as ratios in one run.

Suites: http (ASGI and WSGI), cgi, fastcgi. A CASE is a suite's name, or the
beginning of a case's name. Without any, all are measured.

Each server has a good administrator's configuration (web_servers.py) and must answer as
the others do. They are measured in turns, round after round (measuring.py). All
loads go to 127.0.0.1 and stop by themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import cgi_cases
import fastcgi_cases
import http_cases
import report
import wrk
from measuring import Case, Result, measure

SUITES = {"http": http_cases, "cgi": cgi_cases, "fastcgi": fastcgi_cases}


def chosen(words: Sequence[str]) -> list[tuple[str, list[Case]]]:
    """Return the suites that ``words`` name, with their cases."""
    found = []
    for name, suite in SUITES.items():
        is_whole = not words or name in words
        beginnings = tuple(word.lower() for word in words if word not in SUITES)
        cases = [
            case
            for case in suite.CASES
            if is_whole or (beginnings and case.name.lower().startswith(beginnings))
        ]
        if cases:
            found.append((name, cases))
    return found


def main() -> int:
    """Measure and print; return 0 whatever comes out: a benchmark is no test."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--seconds", type=int, default=5, help="of each load (default 5)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="default 5; 0 only sees that all answer alike"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="SERVER", help="whose name begins so"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--write", action="store_true", help="put tables and charts of whole suites into docs/"
    )
    options = parser.parse_args()
    # As Ctrl-C: the servers are ended.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if not wrk.is_here():
        print("wrk is needed (Debian: wrk)", file=sys.stderr)
        return os.EX_UNAVAILABLE
    suites = chosen(options.cases)
    if not suites:
        names = [case.name for suite in SUITES.values() for case in suite.CASES]
        parser.error(f"no such case; there are {', '.join([*SUITES, *names])}")
    if options.write and (
        options.only
        or not options.rounds
        or any(len(cases) < len(SUITES[name].CASES) for name, cases in suites)
    ):
        parser.error("--write is for whole suites and all servers")
    where = report.environment(options.rounds, options.seconds)
    print(where + "\n")
    measured: list[tuple[str, list[Result]]] = []
    for name, cases in suites:
        results = []
        for case in cases:
            result = measure(
                case, rounds=options.rounds, seconds=options.seconds, only=options.only
            )
            print(report.as_text(result), flush=True)
            results.append(result)
        measured.append((name, results))
        if options.write:
            report.write(name, SUITES[name].TITLE, results, where)
    if options.json:
        found = {
            result.case.name: {
                "figures": {
                    name: dataclasses.asdict(figures) for name, figures in result.figures.items()
                },
                "failures": result.failures,
                "marks": report.verdicts(result),
            }
            for _, results in measured
            for result in results
        }
        Path(options.json).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
