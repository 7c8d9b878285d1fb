"""Keeps the operator's certificate, in a Secret that all replicas share, and serves with it.

Every replica may make or renew what is in the Secret: of two that write at once one is refused and reads what the other
wrote. With cert-manager nobody here writes it; it is read as often.
"""

import asyncio
import base64
import binascii
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from sluice_operator import metrics
from sluice_operator.certificates.authority import Certificates, Signed, renewed
from sluice_operator.cluster.client import Api, Body
from sluice_operator.cluster.errors import ApiError, NotLeading
from sluice_operator.cluster.kinds import path_of
from sluice_operator.observe.views import Key
from sluice_operator.settings import Settings

logger = logging.getLogger(__name__)

SECRET = "sluice-progress-tls"
EVERY_SECONDS = 3600
RETRY_SECONDS = 5
_CONFLICTS = (404, 409)


class NoCertificate(Exception):
    """The Secret has no certificate that can be served, and somebody else is to write it."""


class CertificateKeeper:
    """The certificate of one replica.

    `context` serves with the newest certificate: it is the same object after a renewal, and new connections get the
    new one.
    """

    def __init__(self, api: Api, settings: Settings, clock: Callable[[], datetime]) -> None:
        """`clock` is the operator's: a machine whose clock is ahead would make what no pod takes."""
        self._api = api
        self._ours = settings.certificate_issuer == "Sluice"
        self._key = Key("Secret", settings.namespace, SECRET)
        self._names = names_of(settings)
        self._clock = clock
        self._served = b"", b""
        self.trusted = b""
        """What pods must trust, as PEM; empty before the first look, or if the certificate is one that all trust."""
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2

    async def first(self) -> None:
        """Wait until there is a certificate to serve with."""
        while True:
            try:
                return await self.look()
            except (ApiError, NoCertificate) as error:
                logger.warning("no certificate to serve with yet", extra={"why": str(error)})
                await asyncio.sleep(RETRY_SECONDS)

    async def run(self, on_trusted: Callable[[bytes], Awaitable[None]]) -> None:
        """Look again every hour, and tell what pods must trust from now on. What fails is tried again in an hour."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            try:
                await self.look()
                await on_trusted(self.trusted)
            except (ApiError, NoCertificate, NotLeading) as error:
                logger.warning("the certificate was not looked after", extra={"why": str(error)})

    async def look(self) -> None:
        """Read the Secret, renew what is due, and serve with what there is then.

        Raises:
            ApiError: the API server can't be reached, or refuses.
            NoCertificate: cert-manager has not written it yet, or nobody can serve with what is there.
        """
        entries = await (self._renewed() if self._ours else self._read())
        try:
            certificate, key = entries["tls.crt"], entries["tls.key"]
        except KeyError:
            raise NoCertificate(f"Secret {self._key.name} has no tls.crt and tls.key yet") from None
        if (certificate, key) != self._served:
            _load(self.context, certificate, key)
            self._served = certificate, key
            metrics.CERTIFICATE_ENDS.set(Signed(certificate, key).ends.timestamp())
        self.trusted = entries.get("ca.crt", b"")

    async def _read(self) -> Mapping[str, bytes]:
        try:
            return _entries(await self._api.request("GET", path_of(self._key)))
        except ApiError as error:
            if error.status != 404:
                raise
            return {}

    async def _renewed(self) -> Mapping[str, bytes]:
        """What is in the Secret once all that was due is done, by whichever replica."""
        while True:
            try:
                secret = await self._api.request("GET", path_of(self._key))
            except ApiError as error:
                if error.status != 404:
                    raise
                secret = {}
            held = Certificates.from_secret(_entries(secret))
            wanted = renewed(held, self._names, self._clock())
            if wanted == held:
                return wanted.to_secret()
            try:
                await self._write(secret, wanted)
            except ApiError as error:
                if error.status not in (_CONFLICTS if secret else (409,)):  # 404 to a POST: there is no such namespace
                    raise
                continue  # another replica was faster
            logger.info("certificate renewed", extra={"names": self._names, "ends": wanted.own.ends.isoformat()})
            return wanted.to_secret()

    async def _write(self, before: Body, wanted: Certificates) -> None:
        metadata = {"name": self._key.name, "namespace": self._key.namespace}
        if before:
            metadata["resourceVersion"] = before["metadata"]["resourceVersion"]
        data = {name: base64.b64encode(part).decode() for name, part in wanted.to_secret().items()}
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "type": before.get("type", "kubernetes.io/tls"),
            "data": data,
        }
        path = path_of(self._key)
        await self._api.request(
            "PUT" if before else "POST", path if before else path.rpartition("/")[0], body=secret, attempts=1
        )


def names_of(settings: Settings) -> tuple[str, ...]:
    """By which name pods reach this operator. Prometheus, which scrapes by addresses, is told to expect the same."""
    return (urlsplit(settings.report_url).hostname or "",)


def _entries(secret: Body) -> dict[str, bytes]:
    """A Secret's data; without what is no base64, which the API server would not have taken."""
    found = {}
    for name, text in (secret.get("data") or {}).items():
        try:
            found[str(name)] = base64.b64decode(text, validate=True)
        except (binascii.Error, TypeError):
            continue
    return found


def _load(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Serve with this certificate from the next connection on. OpenSSL reads it from files only.

    Raises:
        NoCertificate: it cannot; the one before is served as if nothing had been.
    """
    with TemporaryDirectory() as folder:
        files = Path(folder, "tls.crt"), Path(folder, "tls.key")
        for file, part in zip(files, (certificate, key), strict=True):
            file.touch(mode=0o600)
            file.write_bytes(part)
        try:  # in another context first: one that fails half-way has lost the certificate that it had
            for tried in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
                tried.load_cert_chain(*files, password="")  # or OpenSSL would ask at a terminal for an encrypted key's
        except ssl.SSLError as error:
            raise NoCertificate(f"tls.crt and tls.key of Secret {SECRET} cannot be served with: {error}") from None
