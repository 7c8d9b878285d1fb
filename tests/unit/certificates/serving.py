"""A server's TLS context with the operator's certificate."""

import ssl
from pathlib import Path

from sluice_operator.certificates.authority import Certificates


def context_of(certificates: Certificates, folder: Path) -> ssl.SSLContext:
    """What a server in a test listens with; the certificate goes through files in a folder."""
    files = folder / "tls.crt", folder / "tls.key"
    for file, part in zip(files, (certificates.own.certificate, certificates.own.key), strict=True):
        file.write_bytes(part)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)
    return context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """The client's end of a connection by a name, once both have said that they are who they are."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = client.wrap_bio(to_client, to_server, server_hostname=name)
    answers = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        done = [_step(end) for end in (asks, answers)]
        if all(done):
            return asks
    raise AssertionError("no end of the handshake")


def _step(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
