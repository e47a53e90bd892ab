"""Examples below a command's help: what to type, and what comes of it."""

from __future__ import annotations

from rich.markup import escape


def examples(*lines: tuple[str, str], note: str = "") -> str:
    """Return an epilog with a column of commands and one of what they do."""
    width = max(len(command) for command, _ in lines) + 3
    rows = [
        f"[cyan]{escape(command)}[/cyan]{' ' * (width - len(command))}{escape(what)}".rstrip()
        for command, what in lines
    ]
    return "\n".join(("[bold]Examples[/bold]", *rows)) + (f"\n\n{note}" if note else "")
