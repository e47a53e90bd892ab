"""Sans-I/O codecs of the protocols at the gate: bytes in, events out.

Nothing in this room opens a socket, starts a thread, reads a clock, awaits or
logs. ``adapters`` and ``gateway`` build on it; it imports neither.
"""
