"""Ports for servers of development and tests."""

import os
import socket
from contextlib import suppress
from itertools import count, islice

from dev.errors import DevError

PORTS = range(20_000, 30_000)
"""Below the range from which the kernel takes ports for outgoing connections: one of them could have the port before
its server has. And below the node ports."""

_next = count(os.getpid() * 211)
"""Each process goes through the range from a place of its own. Not by `random`: training seeds that, so two workers
of pytest drew the same ports at the same time."""


def free_port(address: str = "") -> int:
    """A port on which nobody listens, another one each time; at every address, if none is given."""
    for place in islice(_next, len(PORTS)):
        port = PORTS[place % len(PORTS)]
        with socket.socket() as attempt, suppress(OSError):
            attempt.bind((address, port))
            return port
    raise DevError(f"no free port between {PORTS.start} and {PORTS.stop} on {address or 'this machine'}")
