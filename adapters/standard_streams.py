"""The three standard descriptors of a process that a web server or a spawner has started.

What comes or goes by them is the adapter's, and not to be touched by what the application
prints, or by children of its own.
"""

from __future__ import annotations

import os


def fill_standard_streams() -> None:
    """Open what is closed of the standard streams.

    FastCGI Specification 1.0, section 2.2, leaves nothing but descriptor 0. What is opened
    next would be the application's standard output, and get whatever is printed.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)


def take_stdin() -> int:
    """Return what descriptor 0 was, as another one; 0 itself is empty from now on."""
    taken = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return taken


def take_stdout() -> int:
    """Return what descriptor 1 was, as another one; 1 itself is standard error from now on.

    So is what has been printed before, and not flushed.
    """
    taken = os.dup(1)
    os.dup2(2, 1)
    return taken
