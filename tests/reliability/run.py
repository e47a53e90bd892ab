"""The reliability checks: `make reliability`, or ``run.py A1 B4`` for some of them.

Each prints a line, ``PASS A1 …`` with its numbers or ``FAIL A1 …`` with what was
seen instead; the exit code is 1 if any failed. docs/reliability.md says what each
one does. ``--self-test`` runs some of them against a gateway that is set up wrong,
and expects them to fail.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence

import applications  # noqa: F401 registers its checks, as the others do
import children  # noqa: F401
import framing  # noqa: F401
import limits  # noqa: F401
import names  # noqa: F401
import paths  # noqa: F401
import pools  # noqa: F401
import responders  # noqa: F401
import scripts  # noqa: F401
import self_test
from ground import Ground
from verdicts import CHECKS, Failure

# They measure how fast others are served: nothing else runs meanwhile.
QUIET = ("B4", "B5", "E10", "G1")
# They wait for time-outs of half a minute and need little else: side by side, each in a
# process of its own. The busiest beginnings come first, and a little apart.
PATIENT = ("B7", "B6", "E1", "E7", "G4", "F4", "F1")
APART_S = 2.0
LONGEST_S = 120.0


def run_check(name: str, ground: Ground) -> bool:
    """Run one check and print its line."""
    began = time.monotonic()
    try:
        numbers = CHECKS[name](ground)
    except Failure as failure:
        print(f"FAIL {name} {failure}", flush=True)
    except Exception:
        print(f"FAIL {name} {traceback.format_exc()}", flush=True)
    else:
        print(f"PASS {name} {numbers} [{time.monotonic() - began:.1f} s]", flush=True)
        return True
    return False


def run_in_turn(chosen: Sequence[str]) -> list[str]:
    """Run checks one after another; return those that do not hold."""
    ground = Ground()
    failed = [name for name in chosen if not run_check(name, ground)]
    try:
        ground.close()
    except Failure as failure:
        print(f"FAIL the end of a shared gateway: {failure}", flush=True)
        # Any of them may have left it so.
        return list(chosen)
    return failed


def run_side_by_side(chosen: Iterable[str]) -> list[str]:
    """Run each check in a process of its own; print their lines; return those that fail."""
    running = {}
    for name in chosen:
        running[name] = subprocess.Popen(
            [sys.executable, __file__, "--bare", name], stdout=subprocess.PIPE, text=True
        )
        time.sleep(APART_S)
    failed = []
    for name, process in running.items():
        try:
            said, _ = process.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            said = f"FAIL {name} not done within {LONGEST_S:g} s\n"
        print(said or f"FAIL {name} ended with {process.returncode}\n", end="", flush=True)
        if process.returncode != 0:
            failed.append(name)
    return failed


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Run the reliability checks, or some of them.")
    parser.add_argument("ids", nargs="*", metavar="ID", help="which ones; without, all")
    parser.add_argument("--list", action="store_true", help="say which ones there are")
    parser.add_argument(
        "--self-test", action="store_true", help="see checks fail where the gateway is set up wrong"
    )
    parser.add_argument("--bare", action="store_true", help="one by one, without a closing line")
    parser.add_argument(
        "--again",
        type=int,
        default=0,
        metavar="N",
        help="run what failed up to N times more, alone, on a machine that others use too",
    )
    options = parser.parse_args()
    unknown = [name for name in options.ids if name not in CHECKS]
    if unknown:
        parser.error(f"no such check: {', '.join(unknown)}; --list says which there are")
    chosen = sorted(options.ids or CHECKS, key=lambda name: (name[0], int(name[1:])))
    if options.list:
        print("\n".join(chosen))
        return 0
    if options.self_test:
        return self_test.main(options.ids)
    if options.bare:
        return bool(run_in_turn(chosen))

    began = time.monotonic()
    failed = run_in_turn([name for name in chosen if name not in QUIET and name not in PATIENT])
    for name in chosen:
        if name in QUIET:
            failed += run_in_turn([name])
    failed += run_side_by_side([name for name in PATIENT if name in chosen])
    for _ in range(options.again):
        if failed:
            print(f"again, alone: {' '.join(failed)}", flush=True)
            failed = [name for name in failed if run_in_turn([name])]
    good = len(chosen) - len(failed)
    print(f"{good} passed, {len(failed)} failed in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
