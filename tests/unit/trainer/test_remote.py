"""https:// datasets: only public hosts, at every hop."""

import http.server
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sluice_api.pods import DISK_ENV
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_trainer.data import remote
from sluice_trainer.errors import StageError


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:4700::1111", True),
        ("10.96.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fd00::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b::5db8:d70e", True),
        ("2002:a00:1::", False),
    ],
)
def test_is_public_address(address: str, public: bool) -> None:
    assert remote.is_public(address) == public


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", path, "-out", path.with_suffix(".crt")),
        ],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


BODY = b'{"text": "x"}\n'
UMLAUT = "/r%C3%A4ume/%E2%82%AC.jsonl?a=%20b"
FILES = {"/rows.jsonl": len(BODY), "/no-length": "abc", "/torn": 100, UMLAUT: len(BODY), "/a%20b.jsonl": len(BODY)}
"""Paths, with the length that is announced."""
MOVED = {
    "/moved": "/rows.jsonl",
    "/loop": "/loop",
    "/plain": "http://localhost/rows.jsonl",
    "/file": "file:///etc/passwd",
    "/metadata": "https://169.254.169.254/latest",
    "/nowhere": "https://[::1",
    "/to-umlaut": "/räume/€.jsonl?a=%20b".encode().decode("latin-1"),
}
ENDLESS = {"/drop-by-drop": b"\r\n", "/header-by-header": b""}


class Handler(http.server.BaseHTTPRequestHandler):
    ended = threading.Event()

    def do_GET(self) -> None:
        if self.path in ENDLESS:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n" + ENDLESS[self.path])
            with suppress(OSError):
                while not self.ended.wait(0.01):
                    self.wfile.write(b"x")
            return
        if self.path in FILES:
            self.send_response(200)
            self.send_header("Content-Length", str(FILES[self.path]))
        elif self.path in MOVED:
            self.send_response(302)
            self.send_header("Location", MOVED[self.path])
        else:
            self.send_response(int(self.path[1:]))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def origin(certificate: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    Handler.ended.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield f"https://localhost:{server.server_port}"
    Handler.ended.set()
    server.shutdown()


def test_remote_private_host_is_refused(origin: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"localhost is \S+, an address inside the cluster") as raised:
        remote.fetch(f"{origin}/rows.jsonl", tmp_path / "rows")
    assert (raised.value.reason, raised.value.code) == (Reason.SOURCE_UNUSABLE, ExitCode.BAD_INPUT)


def test_remote_file_is_fetched_through_redirects(origin: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLUICE_ALLOW_PRIVATE_HOSTS", "1")
    for path in ("rows.jsonl", "moved", "no-length", "räume/€.jsonl?a= b", "a b.jsonl", "a%20b.jsonl", "to-umlaut"):
        assert remote.fetch(f"{origin}/{path}", tmp_path / "rows").read_bytes() == b'{"text": "x"}\n'


@pytest.mark.parametrize(
    ("path", "reason", "code", "message"),
    [
        ("404", Reason.DATASET_NOT_FOUND, ExitCode.BAD_INPUT, "localhost has no such file (404)"),
        ("403", Reason.SOURCE_UNUSABLE, ExitCode.BAD_INPUT, "localhost answered 403. The address must be readable"),
        ("503", Reason.DOWNLOAD_FAILED, ExitCode.INTERNAL, "localhost answered 503. Wait until it serves again."),
        ("torn", Reason.DOWNLOAD_FAILED, ExitCode.INTERNAL, "Wait until it serves again."),
        ("loop", Reason.SOURCE_UNUSABLE, ExitCode.BAD_INPUT, "it redirects more than 5 times"),
        ("file", Reason.SOURCE_UNUSABLE, ExitCode.BAD_INPUT, "it leads to file://, which is not https"),
        ("nowhere", Reason.SOURCE_UNUSABLE, ExitCode.BAD_INPUT, "leads to 'https://[::1', which is no address"),
        ("plain", Reason.SOURCE_UNUSABLE, ExitCode.BAD_INPUT, "it leads to http://localhost, which is not https"),
        (
            "metadata",
            Reason.SOURCE_UNUSABLE,
            ExitCode.BAD_INPUT,
            "169.254.169.254 is 169.254.169.254, an address inside",
        ),
    ],
)
def test_remote_errors_become_outcomes(
    origin: str,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    reason: Reason,
    code: ExitCode,
    message: str,
    tmp_path: Path,
) -> None:
    # The origin is on this machine, so that its own address has to pass; every other one is checked.
    public = remote.is_public
    monkeypatch.setattr(remote, "is_public", lambda address: address in ("127.0.0.1", "::1") or public(address))
    with pytest.raises(StageError) as raised:
        remote.fetch(f"{origin}/{path}", tmp_path / "rows")
    assert (raised.value.reason, raised.value.code, message in raised.value.message) == (reason, code, True), (
        raised.value.message
    )


@pytest.mark.parametrize("host", ["host:99999", "host:https", "[::1", "a..b"])
def test_remote_invalid_address_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="is no address") as raised:
        remote.fetch(f"https://{host}/rows.jsonl", tmp_path / "rows")
    assert raised.value.code == ExitCode.BAD_INPUT


@pytest.mark.parametrize("path", ["drop-by-drop", "header-by-header"])
def test_remote_file_that_never_ends_is_given_up(
    origin: str, monkeypatch: pytest.MonkeyPatch, path: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLUICE_ALLOW_PRIVATE_HOSTS", "1")
    monkeypatch.setattr(remote, "MAX_SECONDS", 0.5)
    with pytest.raises(StageError, match="localhost did not send it within 0 hours") as raised:
        remote.fetch(f"{origin}/{path}", tmp_path / "rows")
    assert (raised.value.reason, raised.value.code) == (Reason.SOURCE_UNUSABLE, ExitCode.BAD_INPUT)


def test_remote_file_that_is_too_large_is_refused(origin: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLUICE_ALLOW_PRIVATE_HOSTS", "1")
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 5)
    for path in ("rows.jsonl", "no-length"):
        with pytest.raises(StageError, match="the file is larger than"):
            remote.fetch(f"{origin}/{path}", tmp_path / "rows")


def test_remote_file_that_the_disk_has_no_room_for_names_the_disk(
    origin: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLUICE_ALLOW_PRIVATE_HOSTS", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(StageError, match=r"this pod's disk, .* is full .*Raise resources\.ephemeralStorage") as raised:
        remote.fetch(f"{origin}/rows.jsonl", Path("/dev/full"))
    assert (raised.value.reason, raised.value.code) == (Reason.DOWNLOAD_FAILED, ExitCode.INTERNAL)
    monkeypatch.setenv(DISK_ENV, "5")
    with pytest.raises(StageError, match=r"all that this pod's disk has room for: raise resources\.ephemeralStorage"):
        remote.fetch(f"{origin}/rows.jsonl", tmp_path / "rows")
