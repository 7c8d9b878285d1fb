"""A node's network of its own: a router, pods, and what is beyond, each in a network namespace.

kube-router runs in the router's and enforces what the API server has; nothing of this machine's own network changes. A
server is a socket that listens: the kernel answers for it, and the event loop hangs up.
"""

import asyncio
import ctypes
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from dev.cluster.control_plane import ControlPlane

Answer = TypeVar("Answer")

NODE_ADDRESS = "10.244.255.1"
ROUTER, BEYOND = "router", "beyond"
CONNECTED_WITHIN = 1.0

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
"""os.setns comes with Python 3.12."""


class Lab:
    """Network namespaces that are gone with the block that made them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._made: list[str] = []
        self._listening: list[socket.socket] = []
        self.addresses: dict[str, str] = {}

    @classmethod
    @contextmanager
    def of(cls, name: str) -> Iterator["Lab"]:
        """A router that forwards, and nothing else yet."""
        lab = cls(name)
        try:
            lab._add(ROUTER)
            lab._ip(ROUTER, "address", "add", f"{NODE_ADDRESS}/32", "dev", "lo")
            _run("ip", "netns", "exec", lab._full(ROUTER), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
            yield lab
        finally:
            for listening in lab._listening:
                asyncio.get_running_loop().remove_reader(listening)
                listening.close()
            for made in lab._made:
                _run("ip", "netns", "delete", lab._full(made))

    def add(self, place: str, *more: str) -> str:
        """Something with an address behind the router, and further ones; returns the first."""
        number = len(self._made)
        address, gateway = f"10.244.{number}.2", f"10.244.{number}.1"
        self._add(place)
        link = f"v{number}"
        other_end = ("peer", "e0", "netns", self._full(place))
        _run("ip", "link", "add", link, "netns", self._full(ROUTER), "type", "veth", *other_end)
        self._ip(ROUTER, "address", "add", f"{gateway}/30", "dev", link)
        self._ip(ROUTER, "link", "set", link, "up")
        self._ip(place, "address", "add", f"{address}/30", "dev", "e0")
        self._ip(place, "link", "set", "e0", "up")
        self._ip(place, "route", "add", "default", "via", gateway)
        for other in more:
            self._ip(place, "address", "add", f"{other}/32", "dev", "lo")
            self._ip(ROUTER, "route", "add", other, "via", address)
        self.addresses[place] = address
        return address

    def listen(self, place: str, *ports: int) -> None:
        """Have something answer on all of its addresses.

        A connection that nobody takes stays in the kernel's queue; with 128 of them the port answers no more, which
        looks like a policy that forbids it.
        """
        for port in ports:
            listening = self._inside(place, partial(socket.create_server, ("0.0.0.0", port)))
            listening.setblocking(False)
            asyncio.get_running_loop().add_reader(listening, _hang_up, listening)
            self._listening.append(listening)

    def reaches(self, place: str, address: str, port: int) -> bool:
        """Whether a connection from somewhere to an address is made."""

        def connect() -> bool:
            with suppress(OSError), socket.create_connection((address, port), CONNECTED_WITHIN):
                return True
            return False

        return self._inside(place, connect)

    @asynccontextmanager
    async def enforcing(self, program: Path, plane: ControlPlane, node: str, log: Path) -> AsyncIterator[None]:
        """kube-router, on the router. It reaches the API server of this machine under the same address."""
        server = urlsplit(plane.server)
        to = (server.hostname or "", server.port or 0)
        listening = self._inside(ROUTER, lambda: socket.create_server(to))
        words = [
            *("ip", "netns", "exec", self._full(ROUTER), str(program), f"--kubeconfig={plane.kubeconfig}"),
            *(f"--hostname-override={node}", "--run-firewall=true", "--run-router=false", "--run-service-proxy=false"),
            # What it failed to bring to the kernel it tries again only then.
            *("--health-port=0", "--metrics-port=0", "--v=1", "--iptables-sync-period=2s"),
        ]
        with log.open("ab") as out:
            running = await asyncio.create_subprocess_exec(*words, stdout=out, stderr=out)
        try:
            async with await asyncio.start_server(partial(_relay, to), sock=listening):
                yield
        finally:
            running.terminate()
            await running.wait()

    def _add(self, place: str) -> None:
        _run("ip", "netns", "add", self._full(place))
        self._made.append(place)
        self._ip(place, "link", "set", "lo", "up")

    def _ip(self, place: str, *words: str) -> None:
        _run("ip", "-netns", self._full(place), *words)

    def _full(self, place: str) -> str:
        return f"{self._name}-{place}"

    def _inside(self, place: str, act: Callable[[], Answer]) -> Answer:
        """Do something in a network namespace; a socket made there stays there."""

        def entered() -> Answer:
            with Path(f"/run/netns/{self._full(place)}").open() as file:
                if _LIBC.setns(file.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"no way into {file.name}")
            return act()

        with ThreadPoolExecutor(1) as thread:  # only that thread enters, and ends there
            return thread.submit(entered).result()


def _hang_up(listening: socket.socket) -> None:
    with suppress(BlockingIOError, ConnectionAbortedError):
        listening.accept()[0].close()


async def _relay(to: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    there_reader, there_writer = await asyncio.open_connection(*to)
    await asyncio.gather(_pass_on(reader, there_writer), _pass_on(there_reader, writer), return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
