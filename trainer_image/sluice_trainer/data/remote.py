"""https:// addresses, which a user writes and this pod fetches: only public hosts, only https, only so much.

A name is resolved once per hop and the connection goes to the address that was checked: what the name points to a
moment later (DNS rebinding) plays no part. Redirects are followed by hand, each checked like the first address.
"""

import http.client
import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from sluice_api.pods import disk_room
from sluice_api.reasons import Reason
from sluice_api.sources import shown
from sluice_api.stages import ExitCode
from sluice_trainer import paths
from sluice_trainer.errors import StageError

MAX_FILE_BYTES = 8 * 1024**3
TIMEOUT_SECONDS = 30.0
MAX_SECONDS = 4 * 3600.0
"""Of one answer. TIMEOUT_SECONDS is between two bytes of it, and a server may send them one by one, for ever."""
MAX_REDIRECTS = 5

_IN_ADDRESS = "/%?:@!$&'()*+,;=~#[]"
"""Characters that may stand in an address; a person writes others too, such as ä, which are sent percent-encoded."""
_MOVED = (301, 302, 303, 307, 308)
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""NAT64: an IPv4 address, perhaps a private one, in IPv6 clothes."""


class _TooSlow(Exception):
    """The answer took longer than it may."""


class _Connection(http.client.HTTPSConnection):
    """HTTPS to an address that was checked, with the certificate checked against the name."""

    def __init__(self, host: str, port: int, address: str) -> None:
        self._context = ssl.create_default_context()
        super().__init__(host, port, timeout=TIMEOUT_SECONDS, context=self._context)
        self._address = address
        self._opened: ssl.SSLSocket | None = None
        self._expired = False

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), TIMEOUT_SECONDS)
        self.sock = self._opened = self._context.wrap_socket(plain, server_hostname=self.host)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """End the connection when so many seconds are over, and raise _TooSlow."""
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            yield
            if self._expired:  # without a length, the end of the connection is the end of the file
                raise _TooSlow
        except (OSError, http.client.HTTPException):
            if self._expired:
                raise _TooSlow from None
            raise
        finally:
            timer.cancel()
            self.close()

    def _expire(self) -> None:
        self._expired = True
        if self._opened:
            with suppress(OSError):  # the other side may have ended it just now
                socket.socket.shutdown(self._opened, socket.SHUT_RDWR)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the Internet at large."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def fetch(uri: str, path: Path, field: str = "dataset.uri") -> Path:
    """Download a file to the pod's own disk.

    Args:
        uri: https://host/path.
        path: where to.
        field: what has the address, for messages.

    Raises:
        StageError: DatasetNotFound (404, 410), SourceUnusable, or DownloadFailed with host and status.
    """
    url, name = uri, f"{field} {shown(uri)}"
    for _ in range(MAX_REDIRECTS + 1):
        parts = _checked(url, name)
        host, port = parts.hostname or "", parts.port or 443
        connection = _Connection(host, port, _address(host, port, name))
        try:
            with connection.within(MAX_SECONDS):
                location = _get(connection, parts, path, name)
        except _TooSlow:
            raise _refused(name, f"{host} did not send it within {MAX_SECONDS / 3600:.0f} hours") from None
        except (OSError, http.client.HTTPException) as error:
            raise StageError(
                Reason.DOWNLOAD_FAILED, f"{name}: {host}: {error}. Wait until it serves again.", ExitCode.INTERNAL
            ) from error
        if location is None:
            return path
        url = _joined(url, location, name)
    raise _refused(name, f"it redirects more than {MAX_REDIRECTS} times")


def _get(connection: _Connection, parts: SplitResult, path: Path, name: str) -> str | None:
    """Store what is at an address; or return where it says that to look for it."""
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    headers = {"Accept-Encoding": "identity", "User-Agent": "sluice"}
    connection.request("GET", quote(target, safe=_IN_ADDRESS), headers=headers)
    answer = connection.getresponse()
    if answer.status in _MOVED:
        return str(answer.getheader("Location", ""))
    _check_status(answer.status, connection.host, name)
    _store(answer, path, name)
    return None


def _joined(url: str, location: str, name: str) -> str:
    """The address that a redirect leads to. http.client reads headers as Latin-1, and servers write UTF-8."""
    try:
        return urljoin(url, quote(location.encode("latin-1"), safe=_IN_ADDRESS))
    except ValueError:  # whose text may show a signature
        raise _refused(name, f"it leads to {shown(location)[:200]!r}, which is no address") from None


def _checked(url: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port, (parts.hostname or "").encode("idna")
    except ValueError:  # whose text may show a password
        raise _refused(name, f"{shown(url)} is no address: its host or its port can't be") from None
    if parts.scheme != "https":
        raise _refused(name, f"it leads to {parts.scheme}://{parts.hostname or ''}, which is not https")
    if parts.username or parts.password:
        raise _refused(name, "it has a user name or password in it, which any reader of the job would see")
    return parts


def _address(host: str, port: int, name: str) -> str:
    """The address to connect to: the first, when every address of the host is public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise StageError(
            Reason.DOWNLOAD_FAILED,
            f"{name}: {host} can't be resolved ({error.strerror}). Correct it, or check the pod's DNS.",
            ExitCode.INTERNAL,
        ) from error
    addresses = [str(entry[4][0]) for entry in found]
    private = [address for address in addresses if not is_public(address)]
    if private and os.environ.get("SLUICE_ALLOW_PRIVATE_HOSTS") != "1":
        raise _refused(name, f"{host} is {private[0]}, an address inside the cluster or its network")
    return addresses[0]


def _check_status(status: int, host: str, name: str) -> None:
    if status in (404, 410):
        raise StageError(Reason.DATASET_NOT_FOUND, f"{name}: {host} has no such file ({status}). Correct the address.")
    if status != 200:
        again = status == 429 or status >= 500
        raise StageError(
            Reason.DOWNLOAD_FAILED if again else Reason.SOURCE_UNUSABLE,
            f"{name}: {host} answered {status}. "
            + (
                "Wait until it serves again."
                if again
                else "The address must be readable without signing in; or use pvc://."
            ),
            ExitCode.INTERNAL if again else ExitCode.BAD_INPUT,
        )


def _store(answer: http.client.HTTPResponse, path: Path, name: str) -> None:
    room = min(MAX_FILE_BYTES, disk_room(path.parent))
    announced = answer.length or 0  # http.client's reading of Content-Length: None where it is no length
    with paths.writing_scratch(name, Reason.DOWNLOAD_FAILED), path.open("wb") as file:
        while announced <= room and (block := answer.read(1024 * 1024)):
            file.write(block)
            if file.tell() > room:
                announced = file.tell()
    if announced > room:
        most = "the most that is fetched so"
        if room < MAX_FILE_BYTES:
            most = "all that this pod's disk has room for: raise resources.ephemeralStorage"
        raise _refused(name, f"the file is larger than {room // 2**20} MiB, {most}")
    if path.stat().st_size < announced:
        raise http.client.IncompleteRead(b"", announced - path.stat().st_size)


def _refused(name: str, why: str) -> StageError:
    return StageError(Reason.SOURCE_UNUSABLE, f"{name}: {why}. Use another address, or pvc://.")
