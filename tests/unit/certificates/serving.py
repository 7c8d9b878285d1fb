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
