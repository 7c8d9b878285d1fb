"""An idle TCP connection between the first pod and each other one: when it closes, the other pod is gone.

A collective of gloo fails when a peer is gone, one of nccl may wait until its timeout, and neither says which peer it
was. The kernel closes a connection with its process, so that both are known at once.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store

from sluice_trainer.errors import PeerLost
from sluice_trainer.ranks import Rank
from sluice_trainer.signals import StopSignal

_PORT_KEY = "lifeline"
_FAREWELL = b"."
_TIMEOUT_SECONDS = 60.0
"""To connect two pods that have both joined the store already."""


@contextmanager
def watching_other_pods(rank: Rank, leader: str, store: Store, stop: StopSignal) -> Iterator[None]:
    """While the block runs, end this process if another pod is gone.

    At the end of the block the other pods get a farewell, unless it ends by an error.
    """
    try:
        connections = _accept_all(rank, store) if rank.pod == 0 else {0: _connect_to_first(rank, leader, store)}
    except (OSError, DistError) as error:
        raise PeerLost from error
    for pod, connection in connections.items():
        _enable_keepalive(connection)
        threading.Thread(target=_watch, args=(pod, connection, stop), name=f"pod-{pod}", daemon=True).start()
    yield
    for connection in connections.values():
        with suppress(OSError):
            connection.sendall(_FAREWELL)


def _accept_all(rank: Rank, store: Store) -> dict[int, socket.socket]:
    with socket.create_server(("", 0), backlog=rank.pods) as server:
        server.settimeout(_TIMEOUT_SECONDS)
        store.set(_PORT_KEY, str(server.getsockname()[1]))
        connections: dict[int, socket.socket] = {}
        while len(connections) < rank.pods - 1:
            connection, _ = server.accept()
            connection.settimeout(_TIMEOUT_SECONDS)
            connections[connection.recv(1)[0]] = connection
        return connections


def _connect_to_first(rank: Rank, leader: str, store: Store) -> socket.socket:
    connection = socket.create_connection((leader, int(store.get(_PORT_KEY))), timeout=_TIMEOUT_SECONDS)
    connection.sendall(bytes([rank.pod]))
    return connection


def _enable_keepalive(connection: socket.socket) -> None:
    """Probe an idle connection every 10 s: a node that loses its power closes none."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if (option := getattr(socket, name, None)) is not None:  # not on every operating system
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _watch(pod: int, connection: socket.socket, stop: StopSignal) -> None:
    try:
        received = connection.recv(1)
    except OSError:
        received = b""
    if received != _FAREWELL:
        stop.end(PeerLost(f"The pod with index {pod}"), patience=stop.POD_PATIENCE_SECONDS)
