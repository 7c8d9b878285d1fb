"""What an object store answered, as an error that says whose turn it is and what to do."""

import re
from dataclasses import dataclass

from obstore.exceptions import (
    InvalidPathError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from sluice_files.credentials import Credentials
from sluice_files.errors import BESIDE, Failure, FileError

_WAIT = "Wait until it serves again."
_NO_SUCH_BUCKET = ("NoSuchBucket", "ContainerNotFound", "InvalidBucketName", "ContainerBeingDeleted")
_WRONG_KEY = ("InvalidAccessKeyId", "XAdminUserNotFound", "InvalidClientTokenId", "UnrecognizedClientException")
_WRONG_SECRET = ("SignatureDoesNotMatch", "AuthenticationFailed", "InvalidAuthenticationInfo", "invalid_grant")
_WRONG_TOKEN = ("InvalidToken", "ExpiredToken", "TokenRefreshRequired")
_WRONG_REGION = ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException")
_WRONG_CLOCK = ("RequestTimeTooSkewed", "RequestExpired")
_MESSAGE = r"""(?:<Message>|"message": ?")([^<"]{1,200})"""
_NO_NETWORK = {
    "dns error": "its name can't be resolved",
    "Connection refused": "nobody listens there",
    "InvalidContentType": "it does not speak TLS. Write http:// in the endpoint, if that is meant",
    "ertificate": "its certificate is not signed by anybody who is trusted here. Put the certificate of the authority "
    "that signed it into the Secret, with the key AWS_CA_BUNDLE",
    "imed out": "it does not answer in time",
    "TimedOut": "it does not answer in time",
    "No route to host": "there is no route to it",
    "unreachable": "there is no route to it",
}


_ARCHIVED = (
    Failure.INVALID,
    "it lies in an archive, such as Glacier",
    "Restore it to a class that can be read at once, or copy it.",
)
_FULL = (Failure.TOO_LARGE, "the store has no room left, or a quota is used up", "Make room there.")
_NO_KEY = (
    Failure.REFUSED,
    "the key that it is encrypted with is disabled or gone",
    "Enable the key, or write the file anew.",
)
_KMS = (
    Failure.REFUSED,
    "it is encrypted with a key that the credentials may not use",
    "Give them the right to use that key (kms:Decrypt, and kms:GenerateDataKey for an output).",
)
_BY_CODE = {
    "InvalidObjectState": _ARCHIVED,
    "BlobArchived": _ARCHIVED,
    "BlobBeingRehydrated": _ARCHIVED,
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "KMS.DisabledException": _NO_KEY,
    "KMS.NotFoundException": _NO_KEY,
    "KMS.KMSInvalidStateException": _NO_KEY,
    "UserProjectMissing": (
        Failure.INVALID,
        "who reads this bucket pays for it, which is not possible here",
        "Copy it to a bucket of your own.",
    ),
    "AuthorizationPermissionMismatch": (
        Failure.REFUSED,
        "the application of AZURE_CLIENT_ID has no role for data",
        "Give it the role Storage Blob Data Contributor, or Reader where nothing is written; to own the account is not "
        "enough.",
    ),
    "AuthorizationFailure": (
        Failure.REFUSED,
        "the firewall of the storage account lets this pod not in",
        "Allow its network there, or reach it by a private endpoint.",
    ),
    "KeyBasedAuthenticationNotPermitted": (
        Failure.REFUSED,
        "the storage account takes no keys",
        "Use AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID.",
    ),
}
"""Most come with 403, and no right to the file would mend them."""
_OF_KMS = ("kms:", "customer master key")
"""What an AccessDenied says that is about a key, and not about the file."""


@dataclass(frozen=True)
class Asked:
    """What was asked, of whom, with what."""

    address: str
    """Of the file or folder: s3://bucket/path."""
    host: str
    credentials: Credentials
    writes: bool = False

    @property
    def bucket(self) -> str:
        """The bucket's, or container's, own address."""
        return "/".join(self.address.split("/")[:3])


def refusal(error: Exception, asked: Asked) -> FileError:
    """The error for what the library raised. Its own text may hold signed addresses, so little of it is kept."""
    text = str(error)
    failure, problem, remedy = _meaning(error, text, asked)
    if failure is Failure.REFUSED:
        failure = asked.credentials.failure
    return FileError(failure, asked.credentials.hidden(f"{asked.address}: {problem}. {remedy}"))


def _meaning(error: Exception, text: str, asked: Asked) -> tuple[Failure, str, str]:
    code = _found(r"<Code>([\w.]+)</Code>", text) or ("invalid_grant" if "invalid_grant" in text else "")
    status = int(_found(r"status code: (\d{3})", text) or 0)
    if meaning := _by_code(code, text, asked):
        return meaning
    if "without LOCATION" in text or status in (301, 302, 307, 308):
        return _other_region(text, asked)
    if isinstance(error, FileNotFoundError) or status == 404:
        return Failure.NOT_FOUND, "there is no such file", "Correct the address."
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403, 409):
        return _not_allowed(code, asked)
    if isinstance(error, InvalidPathError):
        return Failure.INVALID, _first_line(text), "Rename or delete what has such a name."
    if not status and "HTTP error" in text.partition("Debug source")[0]:
        return _no_answer(text, asked)
    if status in (408, 429) or status >= 500:
        return Failure.UNREACHABLE, f"{asked.host} answered {status} {code}".rstrip(), _WAIT
    said = _found(_MESSAGE, text) or ("" if status else _first_line(text))
    answered = f"{asked.host} answered {status} {code}".rstrip()
    problem = f"{answered}: {said}" if status else said
    failure = Failure.REFUSED if status else Failure.INVALID
    return failure, problem.rstrip(": ."), "Correct the address, or the values of the Secret."


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:200]


def _by_code(code: str, text: str, asked: Asked) -> tuple[Failure, str, str] | None:
    is_of_key = code == "AccessDenied" and any(sign in text[text.find("<Code>") :] for sign in _OF_KMS)
    if fixed := _KMS if is_of_key else _BY_CODE.get(code):
        failure, problem, remedy = fixed
        return failure, f"{problem} ({code})", remedy
    secret = asked.credentials.secret
    mend = f"Correct the Secret {secret}." if secret else f"Name a Secret in {BESIDE}."
    if code in _NO_SUCH_BUCKET:
        return Failure.NOT_FOUND, f"{asked.host} has no bucket {asked.bucket}", "Correct the address, or create it."
    if code in _WRONG_KEY:
        return Failure.REFUSED, f"{asked.host} does not know the AWS_ACCESS_KEY_ID", mend
    if code in _WRONG_SECRET:
        return Failure.REFUSED, f"{asked.host} says that the credentials are wrong ({code}): {_halves(asked)}", mend
    if code in _WRONG_TOKEN:
        return Failure.REFUSED, f"the AWS_SESSION_TOKEN is over, or not of this store ({code})", mend
    if code in _WRONG_REGION:
        return _other_region(text, asked)
    if code in _WRONG_CLOCK:
        return Failure.UNREACHABLE, f"{asked.host} and this node do not agree on the time", "Set the node's clock."
    return None


def _halves(asked: Asked) -> str:
    match asked.address.partition("://")[0]:
        case "s3":
            return "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID"
        case "gs":
            return "GOOGLE_APPLICATION_CREDENTIALS is no key that is valid now"
    return "the key, or the token, does not belong to AZURE_STORAGE_ACCOUNT, or is over"


def _other_region(text: str, asked: Asked) -> tuple[Failure, str, str]:
    region = _found(r"<Region>([a-z0-9-]+)</Region>", text) or _found(r"expecting '([a-z0-9-]+)'", text)
    secret = asked.credentials.secret or f"that {BESIDE} names"
    find = f" (aws s3api get-bucket-location --bucket {asked.bucket.rpartition('/')[2]} shows it)"
    remedy = f"Add AWS_REGION{f'={region}' if region else ''} to the Secret {secret}{'' if region else find}."
    return Failure.REFUSED, "the bucket is in another region", remedy


def _not_allowed(code: str, asked: Asked) -> tuple[Failure, str, str]:
    said = f" ({code})" if code else ""
    if asked.credentials.secret is None:
        return (
            Failure.REFUSED,
            f"{asked.host} does not show it to everybody{said}",
            f"Name a Secret in {BESIDE}.",
        )
    rights = "write and delete there" if asked.writes else "read it, and list the bucket"
    return (
        Failure.REFUSED,
        f"{asked.host} refuses it to the credentials of the Secret {asked.credentials.secret}{said}",
        f"Give them the right to {rights}, or use others.",
    )


def _no_answer(text: str, asked: Asked) -> tuple[Failure, str, str]:
    """The request had no answer. What the operating system or TLS said is somewhere in the library's long text."""
    why = next((meaning for sign, meaning in _NO_NETWORK.items() if sign in text), "the connection failed")
    return (
        Failure.UNREACHABLE,
        f"{asked.host} can't be reached from this pod: {why}",
        "Check the endpoint and the network policy (the chart's networkPolicy.egress opens what is not public).",
    )


def _found(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1] if match else None
