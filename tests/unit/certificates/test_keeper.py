"""The Secret that replicas share: who writes it, who reads it, and that a renewal reaches the next connection."""

import asyncio
import ssl
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509

from sluice_operator import metrics
from sluice_operator.certificates.authority import CERTIFICATE_LASTS, renewed
from sluice_operator.certificates.keeper import SECRET, CertificateKeeper, NoCertificate
from sluice_operator.cluster.client import Api, Body
from sluice_operator.cluster.errors import ApiError
from sluice_operator.settings import Settings
from tests.unit.certificates.serving import handshake

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
COLLECTION = "/api/v1/namespaces/sluice-system/secrets"


class ApiServer(Api):
    """One Secret, with a resourceVersion."""

    def __init__(self) -> None:
        self.secret: Body | None = None
        self.writes = 0
        self.before_write: Any = None

    async def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> Body:
        if method == "GET":
            assert path == f"{COLLECTION}/{SECRET}"
            if self.secret is None:
                raise ApiError(404, "NotFound", "no such Secret")
            return self.secret
        if self.before_write:
            other, self.before_write = self.before_write, None
            await other()
        version = self.secret["metadata"]["resourceVersion"] if self.secret else None
        if (method, path) == ("POST", COLLECTION) and self.secret is not None:
            raise ApiError(409, "AlreadyExists", "there is one")
        if method == "PUT" and body["metadata"]["resourceVersion"] != version:
            raise ApiError(409, "Conflict", "it is another one now")
        self.writes += 1
        self.secret = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.writes)}}
        return self.secret


class Clock:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


def settings(issuer: str = "Sluice") -> Settings:
    return Settings(
        namespace="sluice-system",
        pod_name="operator-0",
        report_url="https://127.0.0.1:8080",
        trainer_image="trainer",
        server_image="server",
        certificate_issuer=issuer,  # type: ignore[arg-type]
    )


async def test_first_replica_makes_the_secret_and_the_second_reads_it() -> None:
    server, clock = ApiServer(), Clock()
    one, two = (CertificateKeeper(server, settings(), clock) for _ in range(2))
    await one.look()
    await two.look()
    await one.look()
    assert server.writes == 1
    assert one.trusted == two.trusted
    assert one.trusted.startswith(b"-----BEGIN CERTIFICATE-----")


@pytest.mark.parametrize("there_before", [False, True], ids=["making", "renewing"])
async def test_concurrent_writes_of_the_secret_leave_one_certificate(there_before: bool) -> None:
    server, clock = ApiServer(), Clock()
    one, two = (CertificateKeeper(server, settings(), clock) for _ in range(2))
    if there_before:
        await one.look()
        clock.now += CERTIFICATE_LASTS
    server.before_write = two.look
    await one.look()
    assert one.trusted == two.trusted
    assert server.writes == 1 + there_before


async def test_secret_in_a_missing_namespace_is_an_error() -> None:
    class Nowhere(ApiServer):
        async def request(self, method: str, path: str, **_: Any) -> Body:
            self.writes += method == "POST"
            assert self.writes < 3, "it is asked for ever, without a pause"
            raise ApiError(404, "NotFound", f"no {path}")

    with pytest.raises(ApiError, match="secrets"):
        await CertificateKeeper(Nowhere(), settings(), Clock()).look()


async def test_cert_managers_secret_is_read_and_never_written() -> None:
    server, clock = ApiServer(), Clock()
    keeper = CertificateKeeper(server, settings("CertManager"), clock)
    with pytest.raises(NoCertificate, match=r"tls\.crt"):
        await keeper.look()
    await CertificateKeeper(server, settings(), clock).look()
    clock.now += CERTIFICATE_LASTS
    await keeper.look()
    assert server.writes == 1


@pytest.mark.parametrize("entry", ["tls.crt", "tls.key"])
async def test_emptied_secret_keeps_the_old_certificate_served(entry: str) -> None:
    server = ApiServer()
    await CertificateKeeper(server, settings(), Clock()).look()
    assert server.secret is not None
    keeper, whole = CertificateKeeper(server, settings("CertManager"), Clock()), dict(server.secret["data"])
    await keeper.look()
    trusted = keeper.trusted
    server.secret["data"] = {**whole, entry: "", "ca.crt": ""}
    with pytest.raises(NoCertificate, match=SECRET):
        await keeper.look()
    assert keeper.trusted == trusted
    server.secret["data"] = whole
    await keeper.look()


async def test_new_connection_gets_the_renewed_certificate(tmp_path: Path) -> None:
    """The listening socket and its context stay."""
    server, clock = ApiServer(), Clock()
    clock.now = datetime.now(UTC)  # the client's clock is the machine's
    keeper = CertificateKeeper(server, settings(), clock)
    await keeper.look()
    runner = web.AppRunner(web.Application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=keeper.context)
    await site.start()
    address = f"https://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/"  # type: ignore[union-attr]
    trust = tmp_path / "ca.crt"
    try:
        trust.write_bytes(keeper.trusted)
        assert await _answered(address, trust) == 404
        before = keeper.trusted
        server.secret = None  # deleted by hand: another authority
        await keeper.look()
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await _answered(address, trust)
        assert keeper.trusted != before
        trust.write_bytes(keeper.trusted)
        assert await _answered(address, trust) == 404
    finally:
        await runner.cleanup()


async def test_missing_secret_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ApiServer()
    keeper = CertificateKeeper(server, settings("CertManager"), Clock())
    waiting = asyncio.Event()

    async def sleep(_seconds: float) -> None:
        waiting.set()
        server.secret = {"data": _data()}

    monkeypatch.setattr("sluice_operator.certificates.keeper.asyncio.sleep", sleep)
    await keeper.first()
    assert waiting.is_set()
    assert keeper.trusted


@pytest.mark.parametrize("entry", ["tls.crt", "tls.key"])
@pytest.mark.parametrize("part", ["", "truncated", "another's"])
async def test_invalid_secret_keeps_the_old_certificate_served(entry: str, part: str) -> None:
    """cert-manager writes an empty tls.crt first, and people copy Secrets."""
    server = ApiServer()
    first, fresh = _data(), _data()
    server.secret = {"data": first}
    keeper = CertificateKeeper(server, settings("CertManager"), Clock())
    await keeper.look()
    trusted = keeper.trusted
    ends = x509.load_pem_x509_certificate(b64decode(first["tls.crt"])).not_valid_after_utc
    wrong = {"": "", "truncated": fresh[entry][:200], "another's": _data()[entry]}[part]
    server.secret = {"data": {**fresh, entry: wrong}}
    with pytest.raises(NoCertificate, match="cannot be served"):
        await keeper.look()
    assert keeper.trusted == trusted, "pods trust what is served"
    told = metrics.REGISTRY.get_sample_value("sluice_certificate_expiration_timestamp_seconds")
    assert told == ends.timestamp(), "an alert goes by it"
    assert await asyncio.to_thread(_served_to, keeper.context, trusted)
    server.secret = {"data": fresh}
    await keeper.look()
    assert await asyncio.to_thread(_served_to, keeper.context, keeper.trusted)


def _served_to(context: ssl.SSLContext, trusted: bytes) -> bool:
    """Whether a server with this context shows a client a certificate that it trusts."""
    client = ssl.create_default_context(cadata=trusted.decode())
    return handshake(context, client, "127.0.0.1").getpeercert() is not None


def _data() -> dict[str, str]:
    held = renewed(None, ("127.0.0.1",), datetime.now(UTC) - timedelta(days=1))
    return {name: b64encode(part).decode() for name, part in held.to_secret().items()}


async def _answered(address: str, trust: Path) -> int:
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=trust), force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session, session.get(address) as answer:
        return answer.status
