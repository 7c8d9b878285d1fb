"""When each certificate is renewed, and that whoever trusted the old one is never left behind."""

import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from sluice_operator.certificates.authority import (
    AUTHORITY_LASTS,
    AUTHORITY_RENEWED,
    CERTIFICATE_LASTS,
    CERTIFICATE_RENEWED,
    CLOCK_SKEW,
    TRUSTED_FIRST,
    Certificates,
    Signed,
    renewed,
)
from tests.unit.certificates.serving import context_of, handshake

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
NAMES = ("sluice-progress.sluice-system.svc", "127.0.0.1")
SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def first() -> Certificates:
    return renewed(None, NAMES, NOW)


def parts(before: Certificates, after: Certificates) -> set[str]:
    """What is new."""
    return {name for name in ("issuer", "next_issuer", "own") if getattr(before, name) != getattr(after, name)}


@pytest.mark.parametrize(
    ("after", "new"),
    [
        pytest.param(timedelta(0), set(), id="nothing is due"),
        pytest.param(CERTIFICATE_LASTS - CERTIFICATE_RENEWED - SECOND, set(), id="a moment before its renewal"),
        pytest.param(CERTIFICATE_LASTS - CERTIFICATE_RENEWED, {"own"}, id="the certificate, by the same authority"),
        pytest.param(AUTHORITY_LASTS - AUTHORITY_RENEWED, {"next_issuer", "own"}, id="the next authority"),
        pytest.param(AUTHORITY_LASTS, {"issuer", "own"}, id="nobody ran for five years: all of it"),
    ],
)
def test_certificates_are_renewed_when_due(first: Certificates, after: timedelta, new: set[str]) -> None:
    assert parts(first, renewed(first, NAMES, NOW + after)) == new


def test_next_authority_is_trusted_for_a_while_before_it_signs(first: Certificates) -> None:
    made = NOW + AUTHORITY_LASTS - AUTHORITY_RENEWED
    waiting = renewed(first, NAMES, made)
    assert waiting.trusted.count(b"BEGIN CERTIFICATE") == 2
    assert _is_signed_by(waiting.own, waiting.issuer)
    still = renewed(waiting, NAMES, made + TRUSTED_FIRST - SECOND)
    assert still.issuer == first.issuer
    signing = renewed(still, NAMES, made + TRUSTED_FIRST)
    assert (signing.issuer, signing.next_issuer) == (waiting.next_issuer, None)
    assert _is_signed_by(signing.own, signing.issuer)


def test_next_authority_made_by_a_clock_ahead_is_forgotten() -> None:
    """Pods would not take what it signs."""
    within = renewed(None, NAMES, NOW + CLOCK_SKEW)
    assert parts(within, renewed(within, NAMES, NOW)) == set(), "every clock is a little off"
    waiting = renewed(within, NAMES, NOW + AUTHORITY_LASTS - AUTHORITY_RENEWED + CLOCK_SKEW)
    before = renewed(waiting, NAMES, NOW + timedelta(days=10))
    assert parts(waiting, before) == {"own", "next_issuer"}
    assert before.next_issuer is None


def test_certificate_for_other_names_is_renewed(first: Certificates) -> None:
    assert parts(first, renewed(first, ("sluice-progress.other.svc",), NOW)) == {"own"}


def test_certificate_of_another_authority_is_renewed(first: Certificates) -> None:
    """cert-manager wrote it into the Secret, and the chart was switched back. Seen elsewhere: cryostat-operator#896."""
    by_another = renewed(None, NAMES, NOW).own
    held = Certificates.from_secret(replace(first, own=by_another).to_secret())
    assert held is not None
    anew = renewed(held, NAMES, NOW)
    assert parts(held, anew) == {"own"}
    assert _is_signed_by(anew.own, anew.issuer)


@pytest.mark.parametrize(
    ("ahead", "new"),
    [
        pytest.param(CLOCK_SKEW, set(), id="within what is allowed for"),
        pytest.param(CLOCK_SKEW + SECOND, {"issuer", "own"}, id="not valid yet"),
    ],
)
def test_authority_made_by_a_clock_ahead_is_renewed(ahead: timedelta, new: set[str]) -> None:
    """Pods would refuse it until its first day. Seen elsewhere: skupper#456, istio#32176."""
    made = renewed(None, NAMES, NOW + ahead)
    assert parts(made, renewed(made, NAMES, NOW)) == new


def test_certificate_without_names_is_renewed(first: Certificates) -> None:
    """Made by hand as tutorials show it, with a common name only."""
    held = replace(first, own=first.issuer)
    assert parts(held, renewed(held, NAMES, NOW)) == {"own"}


def test_certificate_that_is_not_valid_yet_is_renewed(first: Certificates) -> None:
    held = renewed(first, NAMES, NOW + CERTIFICATE_LASTS)
    assert parts(held, renewed(held, NAMES, NOW)) == {"own"}


@pytest.mark.parametrize("broken", ["tls.key", "issuer.crt", "next.key"])
def test_secret_that_cannot_be_read_is_none(first: Certificates, broken: str) -> None:
    whole = renewed(first, NAMES, NOW + AUTHORITY_LASTS - AUTHORITY_RENEWED)
    assert Certificates.from_secret(whole.to_secret()) == whole
    assert Certificates.from_secret(first.to_secret()) == first
    assert Certificates.from_secret({**whole.to_secret(), broken: b"no PEM"}) is None
    assert Certificates.from_secret({n: part for n, part in whole.to_secret().items() if n != broken}) is None
    assert Certificates.from_secret({**whole.to_secret(), "tls.key": first.issuer.key}) is None


def test_certificate_that_sluice_would_not_make_is_none(first: Certificates) -> None:
    """Of another's making: its key has a password."""
    key = load_pem_private_key(first.own.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    sealed = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    assert Certificates.from_secret({**first.to_secret(), "tls.key": sealed}) is None


@given(st.lists(st.integers(1, 364), min_size=1, max_size=8))
def test_trust_published_two_days_ago_verifies_the_operator(days: list[int]) -> None:
    """However seldom anybody looks, if it is once a year.

    Seen to fail when the certificate was not renewed in the same look as the next authority.
    """
    now, held = NOW, renewed(None, NAMES, NOW)
    for pause in days:
        trusted_before = held.trusted
        now += timedelta(days=pause)
        held = renewed(held, NAMES, now)
        assert held.own.ends > now
        assert held.issuer.certificate in trusted_before


def test_openssl_verifies_the_chain(first: Certificates, tmp_path: Path) -> None:
    """Strictly: key identifiers and usages are as RFC 5280 has them."""
    server = context_of(first, tmp_path)
    client = ssl.create_default_context(cadata=first.trusted.decode())
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    for name in NAMES:
        ends = handshake(server, client, name)
        assert ends.version() in {"TLSv1.2", "TLSv1.3"}
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client, "somebody-else.svc")


def _is_signed_by(own: Signed, issuer: Signed) -> bool:
    made, authority = (x509.load_pem_x509_certificate(part.certificate) for part in (own, issuer))
    try:
        made.verify_directly_issued_by(authority)
    except InvalidSignature:
        return False
    return True
