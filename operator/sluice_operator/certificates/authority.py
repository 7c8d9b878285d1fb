"""Sluice's own authority: who signs the operator's certificate, and when each part is renewed.

Whoever trusts the authority must have its next one before that one signs anything: a pod reads its ConfigMap again
within minutes. So a new authority is trusted for a while first, and signs afterwards. Nothing here knows of files or
of the API server; the clock comes in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LASTS = timedelta(days=5 * 365)
AUTHORITY_RENEWED = timedelta(days=365)
"""So long before its end the next authority is made."""
TRUSTED_FIRST = timedelta(days=2)
"""So long a new authority is only trusted. Every pod has read its ConfigMap again by then."""
CERTIFICATE_LASTS = timedelta(days=90)
CERTIFICATE_RENEWED = timedelta(days=30)
"""So long before its end the certificate is renewed."""
CLOCK_SKEW = timedelta(hours=1)
"""A new certificate holds from so long ago: not every node's clock is right."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate and its key, both as PEM."""

    certificate: bytes
    key: bytes

    @property
    def made(self) -> datetime:
        """When it was made."""
        return x509.load_pem_x509_certificate(self.certificate).not_valid_before_utc + CLOCK_SKEW

    @property
    def ends(self) -> datetime:
        """Until when it holds."""
        return x509.load_pem_x509_certificate(self.certificate).not_valid_after_utc

    def is_ahead(self, now: datetime) -> bool:
        """Whether it holds only from a later moment on: a clock that was ahead has made it, and nobody takes it yet."""
        return now < self.made - CLOCK_SKEW


@dataclass(frozen=True, slots=True)
class Certificates:
    """All that there is: who signs, who will sign next, and the operator's own certificate."""

    issuer: Signed
    next_issuer: Signed | None
    own: Signed

    @property
    def trusted(self) -> bytes:
        """What pods trust, as PEM: the authority that signs, and the one that will."""
        return self.issuer.certificate + (self.next_issuer.certificate if self.next_issuer else b"")

    def to_secret(self) -> dict[str, bytes]:
        """As a Secret of type kubernetes.io/tls has it, and the authorities beside it."""
        entries = {
            "tls.crt": self.own.certificate,
            "tls.key": self.own.key,
            "ca.crt": self.trusted,
            "issuer.crt": self.issuer.certificate,
            "issuer.key": self.issuer.key,
        }
        if self.next_issuer:
            entries |= {"next.crt": self.next_issuer.certificate, "next.key": self.next_issuer.key}
        return entries

    @classmethod
    def from_secret(cls, entries: Mapping[str, bytes]) -> Self | None:
        """What `to_secret` wrote; None where a part is missing or cannot be read, and all is renewed."""
        try:
            found = cls(
                Signed(entries["issuer.crt"], entries["issuer.key"]),
                Signed(entries["next.crt"], entries["next.key"]) if "next.crt" in entries else None,
                Signed(entries["tls.crt"], entries["tls.key"]),
            )
            for signed in filter(None, (found.issuer, found.next_issuer, found.own)):
                _read(signed)
        except (KeyError, ValueError, TypeError, UnsupportedAlgorithm):
            return None  # TypeError: a key with a password
        return found


def renewed(held: Certificates | None, names: Sequence[str], now: datetime) -> Certificates:
    """What there should be now; an equal value when nothing is due.

    Args:
        held: what there is.
        names: host names and addresses by which pods reach the operator, the first of which is its own name.
    """
    if held is None:
        return _new(names, now)
    issuer = held.issuer
    coming = held.next_issuer if held.next_issuer and not held.next_issuer.is_ahead(now) else None
    if coming is not None and now - coming.made >= TRUSTED_FIRST:
        issuer, coming = coming, None
    if issuer.ends <= now or issuer.is_ahead(now):
        return _new(names, now)
    if coming is None and issuer.ends - now <= AUTHORITY_RENEWED:
        coming = _authority(now)
    due = (
        held.own.ends - now <= CERTIFICATE_RENEWED
        or held.own.is_ahead(now)
        or _names_of(held.own) != {*names}
        or not _has_signed(issuer, held.own)
    )
    return Certificates(issuer, coming, _signed(issuer, names, now) if due else held.own)


def _has_signed(issuer: Signed, signed: Signed) -> bool:
    """Whether whoever trusts the issuer believes the other. Somebody else may have written that into the Secret."""
    made = x509.load_pem_x509_certificate(signed.certificate)
    try:
        made.verify_directly_issued_by(x509.load_pem_x509_certificate(issuer.certificate))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _new(names: Sequence[str], now: datetime) -> Certificates:
    issuer = _authority(now)
    return Certificates(issuer, None, _signed(issuer, names, now))


def _authority(now: datetime) -> Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"sluice {now:%Y-%m-%d}")])
    usage = x509.KeyUsage(
        **dict.fromkeys(
            (
                *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
                *("key_agreement", "encipher_only", "decipher_only"),
            ),
            False,
        ),
        key_cert_sign=True,
        crl_sign=True,
    )
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + AUTHORITY_LASTS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(made, key)


def _signed(issuer: Signed, names: Sequence[str], now: datetime) -> Signed:
    authority, authority_key = _read(issuer)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    own_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    made = (
        x509.CertificateBuilder(authority.subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(min(now + CERTIFICATE_LASTS, authority.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(own_id, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return _pem(made, key)


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Signed:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Signed(certificate.public_bytes(Encoding.PEM), private)


def _read(signed: Signed) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Both parts.

    Raises:
        ValueError: one cannot be read, or they do not belong together.
    """
    certificate, key = x509.load_pem_x509_certificate(signed.certificate), load_pem_private_key(signed.key, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise ValueError("certificate and key do not belong together")
    return certificate, key


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_of(signed: Signed) -> set[str]:
    found = x509.load_pem_x509_certificate(signed.certificate).extensions
    try:
        names = found.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return {*names.get_values_for_type(x509.DNSName), *addresses}
