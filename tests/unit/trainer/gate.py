"""A way to a server that can be closed: as when a store restarts, or a network is cut or hangs."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Gate(threading.Thread):
    """Passes connections on to a server while it is open."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(daemon=True)
        host, port = endpoint.removeprefix("http://").split(":")
        self._server = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open = threading.Event()
        self._open.set()
        self._hangs = self._ended = False
        self._connections: list[socket.socket] = []
        self.refused = threading.Event()
        """Somebody wanted to come through while it was closed."""
        self.endpoint = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def close(self, *, hangs: bool = False) -> None:
        """Cut all connections; new ones are cut too, or wait until it is open."""
        self._hangs = hangs
        self._open.clear()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        """Let everybody through."""
        self._open.set()

    def run(self) -> None:
        """Accept connections."""
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        if not self._open.is_set():
            self.refused.set()
            if not self._hangs:
                client.close()
                return
            self._open.wait()
        if self._ended:
            client.close()
            return
        server = socket.create_connection(self._server)
        self._connections += [client, server]
        back = threading.Thread(target=_copy, args=(server, client), daemon=True)
        back.start()
        _copy(client, server)
        back.join()
        client.close()
        server.close()

    def stop(self) -> None:
        """End it; who still waits is cut off."""
        self._ended = True
        self.open()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def gate(endpoint: str) -> Iterator[Gate]:
    """A gate before a server, which is open at first."""
    way = Gate(endpoint)
    way.start()
    yield way
    way.stop()
