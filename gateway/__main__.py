"""``python -m tetrapylon.gateway``: the command ``tetrapylon``."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
