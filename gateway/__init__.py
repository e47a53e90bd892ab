"""The gateway: a listener, a router, backends with a lifetime, and commands."""

__version__ = "0.1.0"
