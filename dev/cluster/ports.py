"""Ports for servers of development and tests."""

import random
import socket
from contextlib import suppress

from dev.errors import DevError

PORTS = range(20_000, 30_000)
"""Below the range from which the kernel takes ports for outgoing connections: one of them could have the port before
its server has. And below the node ports."""


def free_port(address: str = "") -> int:
    """A port on which nobody listens; at every address, if none is given."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as attempt, suppress(OSError):
            attempt.bind((address, port))
            return port
    raise DevError(f"no free port between {PORTS.start} and {PORTS.stop} on {address or 'this machine'}")
