#!/usr/bin/env python3
"""Fails before it has answered: the client gets 502, the log gets the traceback."""

raise RuntimeError("this script is broken on purpose")
