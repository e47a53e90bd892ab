"""Which requirements the tests name, and which they do not.

usage: cited.py [--missing]
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
# Whom the project itself is: not the applications behind it.
OURS = {"server", "client", "bridge", "both"}


def requirements() -> dict[str, dict[str, dict[str, str]]]:
    """Return every requirement by standard and id."""
    found = {}
    for path in sorted((HERE / "requirements").glob("*.toml")):
        table = tomllib.loads(path.read_text())
        found[table["title"]] = {entry["id"]: entry for entry in table["req"]}
    return found


def cited_ids() -> dict[str, set[str]]:
    """Return every id that a test names, with the files that name it."""
    prefixes = {name.split("-")[0] for entries in requirements().values() for name in entries}
    pattern = re.compile(
        rf"\b(?:{'|'.join(sorted(prefixes))})-[A-Z0-9][A-Z0-9.-]*[A-Z0-9](?![-\w])"
    )
    found: dict[str, set[str]] = {}
    for path in sorted(TESTS.rglob("*.py")):
        for name in pattern.findall(path.read_text()):
            found.setdefault(name, set()).add(str(path.relative_to(TESTS)))
    return found


def main() -> int:
    """Print a line for each standard; with ``--missing``, what no test names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--missing", action="store_true", help="list what no test names")
    options = parser.parse_args()
    cited = cited_ids()
    for title, entries in requirements().items():
        ours = {name: entry for name, entry in entries.items() if entry["who"] in OURS}
        named = [name for name in ours if name in cited]
        print(f"{title}: {len(named)} of {len(ours)} requirements named by a test")
        if options.missing:
            for name, entry in ours.items():
                if name not in cited:
                    print(f"  {name:<28} {entry['level']:<10} {entry['text']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
