"""What opens an address: the keys of a Secret, read from the files that it is mounted as.

They never come into the environment, where a library's or a user's code would print them, nor into a message.
"""

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from urllib.parse import SplitResult, quote, quote_plus, urlsplit

from sluice_api import sources
from sluice_api.sources import KEYS_OF, meant_key
from sluice_files.errors import Failure, FileError

ROOT_ENV = "SLUICE_CREDENTIALS"
"""Moves sources.CREDENTIALS, for runs outside a pod."""
MAX_VALUE_BYTES = 65_536

_SEVERAL_LINES = ("GOOGLE_APPLICATION_CREDENTIALS", "AWS_CA_BUNDLE")
_NO_SECRETS = (
    "HF_ENDPOINT", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT",
)  # fmt: skip
"""What a message may say: it is of no use to anybody."""
_SIGNED = re.compile(
    r"(?i)\b((?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig)=|authorization:\s*\w+\s+)"
    r"[^\s&\"'<>]+"
)
"""What opens an address that is signed, and is in none of the values: it is made of them."""
_EXAMPLES = {
    "hf": "--from-literal=HF_TOKEN=...",
    "s3": "--from-literal=AWS_ACCESS_KEY_ID=... --from-literal=AWS_SECRET_ACCESS_KEY=...",
    "gs": "--from-file=GOOGLE_APPLICATION_CREDENTIALS=key.json",
    "az": "--from-literal=AZURE_STORAGE_ACCOUNT=... --from-literal=AZURE_STORAGE_KEY=...",
}


@dataclass(frozen=True, repr=False)
class Credentials:
    """The values of a Secret's keys. Neither repr nor str shows one."""

    secret: str | None = None
    """The Secret's name; None for an address that needs nothing."""
    values: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __repr__(self) -> str:
        return f"Credentials(secret={self.secret!r}, keys={sorted(self.values)})"

    def first(self, *keys: str) -> str | None:
        """The value of the first of these keys that is there."""
        return next((self.values[key] for key in keys if self.values.get(key)), None)

    @property
    def failure(self) -> Failure:
        """Whose turn it is where an address does not open: the Secret's owner's, or whoever named none."""
        return Failure.INVALID if self.secret is None else Failure.REFUSED

    def hidden(self, text: str) -> str:
        """A text of somebody else's, without any of the values."""
        secrets = {value for key, value in self.values.items() if key not in _NO_SECRETS and len(value) > 3}
        forms = {form for secret in secrets for form in _forms(secret)}
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, "***")
        return _SIGNED.sub(r"\1***", text)


NOTHING = Credentials()


def _forms(value: str) -> Iterator[str]:
    """How a value may be written in an answer: as it is, in an address, in JSON, and in base64."""
    yield value
    yield quote(value, safe="")
    yield quote(value, safe="/")
    yield quote_plus(value)
    yield json.dumps(value)[1:-1]
    yield base64.b64encode(value.encode()).decode()
    yield base64.urlsafe_b64encode(value.encode()).decode()


def read_credentials(source: sources.Credentials | None, uri: str) -> Credentials:
    """The credentials that a pod has for an address; NOTHING if its spec names none.

    Raises:
        FileError: Refused: the Secret is not there, or has none of the keys that open such an address.
    """
    if source is None:
        return NOTHING
    kind = uri.partition("://")[0]
    if kind not in KEYS_OF:
        raise FileError(
            Failure.INVALID,
            f"{sources.shown(uri)}: credentials do not open such an address. Leave them out, or use hf://, s3://, "
            "gs:// or az://.",
        )
    folder = Path(os.environ.get(ROOT_ENV, str(sources.CREDENTIALS))) / source.secret
    if not folder.is_dir() or not (found := _keys(folder)):
        raise FileError(
            Failure.REFUSED,
            f"{uri}: the Secret {source.secret} is not in this namespace, or has no key that opens such an address "
            f"({_listed(KEYS_OF[kind])}). {_create(folder, kind)}",
        )
    meant = {key: meant_key(key) for key in found}
    if wrong := [(key, right) for key, right in meant.items() if right in KEYS_OF[kind] and right not in found]:
        named = ", ".join(f"{right} instead of {key}" for key, right in wrong)
        raise FileError(
            Failure.REFUSED, f"{uri}: keys of the Secret {source.secret} are called otherwise here. Write {named}."
        )
    values = {key: _value(folder / key, uri, source.secret) for key in KEYS_OF[kind] if key in found}
    if not values:
        raise FileError(
            Failure.REFUSED,
            f"{uri}: the Secret {source.secret} has {_listed(found)}, and no key that opens such an address: "
            f"{_listed(_nearest_first(KEYS_OF[kind], found))}. {_create(folder, kind)}",
        )
    return Credentials(source.secret, values)


def endpoint(uri: str, credentials: Credentials, *keys: str) -> SplitResult | None:
    """Where a Secret says that the address is served: the parts of the first of these keys that is there.

    Raises:
        FileError: Refused: it is no endpoint. What it is is not shown: it may have a password in it.
    """
    key = next((key for key in keys if credentials.first(key)), None)
    return parsed_endpoint(uri, key, credentials.values[key]) if key else None


def parsed_endpoint(uri: str, key: str, value: str) -> SplitResult:
    """An endpoint's parts. Raises as `endpoint` does."""
    try:
        parts = urlsplit(value.rstrip("/"))
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        _ = parts.port
    except ValueError:
        usable, parts = False, urlsplit("")
    if not usable or parts.query or parts.fragment:
        raise FileError(
            Failure.REFUSED,
            f"{uri}: {key} is no endpoint. Write http:// or https://, host and port, such as http://minio.storage:9000",
        )
    return parts


def _keys(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("..") and entry.is_file())


def _value(file: Path, uri: str, secret: str) -> str:
    """One value. A file or a shell often leaves a newline behind it, which no key has."""
    problem = "is empty"
    content = file.read_bytes()[: MAX_VALUE_BYTES + 1]
    if len(content) > MAX_VALUE_BYTES:
        problem = "is too long"
    else:
        try:
            text = content.decode("utf-8").strip()
            if text and (file.name in _SEVERAL_LINES or (text.isascii() and text.isprintable())):
                return text
            problem = "has a line break or a character that no such key has" if text else problem
        except UnicodeDecodeError:
            problem = "is not text"
    raise FileError(
        Failure.REFUSED,
        f"{uri}: key {file.name} of the Secret {secret} {problem}. Write the value itself, as its tool shows it.",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _nearest_first(known: Sequence[str], found: Sequence[str]) -> list[str]:
    """The known keys, those first that an unknown one among the found may be meant for."""
    odd = [one.upper() for one in found if not any(one in keys for keys in KEYS_OF.values())]
    return sorted(known, key=lambda key: -max((SequenceMatcher(None, key, one).ratio() for one in odd), default=0.0))


def _create(folder: Path, kind: str) -> str:
    if ROOT_ENV in os.environ:  # no cluster has it
        return f"Write each value into a file of its key's name in {folder}: {_listed(KEYS_OF[kind])}."
    also = ", with AWS_ENDPOINT_URL too unless it is Amazon's own S3" if kind == "s3" else ""
    return f"Create it (kubectl create secret generic {folder.name} {_EXAMPLES[kind]}){also}."
