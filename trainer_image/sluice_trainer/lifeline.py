"""A connection between the first pod and each other one, which carries nothing: its end is the news.

A collective of gloo fails when a peer is gone, one of nccl may wait for it until its timeout, and neither says who
it was. A connection that the kernel closes with its process tells both at once.
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

_KEY = "lifeline"
_FAREWELL = b"."
_SECONDS = 60.0
"""For the first words between two pods that have met in the store already."""


@contextmanager
def held(rank: Rank, leader: str, store: Store, stop: StopSignal) -> Iterator[None]:
    """While the block runs, a pod that is gone ends this process. A block that ends by an error says no farewell."""
    try:
        connections = _to_the_others(rank, store) if rank.pod == 0 else {0: _to_the_first(rank, leader, store)}
    except (OSError, DistError) as error:
        raise PeerLost from error
    for pod, connection in connections.items():
        _notice_a_dead_node(connection)
        threading.Thread(target=_watch, args=(pod, connection, stop), name=f"pod-{pod}", daemon=True).start()
    yield
    for connection in connections.values():
        with suppress(OSError):
            connection.sendall(_FAREWELL)


def _to_the_others(rank: Rank, store: Store) -> dict[int, socket.socket]:
    with socket.create_server(("", 0), backlog=rank.pods) as server:
        server.settimeout(_SECONDS)
        store.set(_KEY, str(server.getsockname()[1]))
        connections: dict[int, socket.socket] = {}
        while len(connections) < rank.pods - 1:
            connection, _ = server.accept()
            connection.settimeout(_SECONDS)
            connections[connection.recv(1)[0]] = connection
        return connections


def _to_the_first(rank: Rank, leader: str, store: Store) -> socket.socket:
    connection = socket.create_connection((leader, int(store.get(_KEY))), timeout=_SECONDS)
    connection.sendall(bytes([rank.pod]))
    return connection


def _notice_a_dead_node(connection: socket.socket) -> None:
    """Ask every 10 s: a node that loses its power closes nothing."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if (option := getattr(socket, name, None)) is not None:  # not on every laptop
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _watch(pod: int, connection: socket.socket, stop: StopSignal) -> None:
    try:
        word = connection.recv(1)
    except OSError:
        word = b""
    if word != _FAREWELL:
        stop.end(PeerLost(f"The pod with index {pod}"), patience=stop.POD_PATIENCE)
