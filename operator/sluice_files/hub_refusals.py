"""What a hub answered, as an error that says whose turn it is and what to do."""

from dataclasses import dataclass

from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sluice_files.credentials import Credentials
from sluice_files.errors import BESIDE, Failure, FileError

_CREATE = "kubectl create secret generic hub --from-literal=HF_TOKEN=..."


@dataclass(frozen=True)
class Asked:
    """What was asked, of whom, with what."""

    uri: str
    page: str
    """Where a person sees the repository."""
    revision: str
    file: str
    endpoint: str
    credentials: Credentials


def refusal(error: Exception, asked: Asked) -> FileError:
    """The error for what the library raised."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # it was not in the cache, either
    failure, problem, remedy = _meaning(error, asked)
    if failure is Failure.REFUSED:
        failure = asked.credentials.failure
    return FileError(failure, asked.credentials.hidden(f"{asked.uri}: {problem}. {remedy}"))


def _meaning(error: Exception, asked: Asked) -> tuple[Failure, str, str]:
    correct = "Correct the address."
    match error:
        case GatedRepoError():
            return _gated(asked)
        case DisabledRepoError():
            return Failure.REFUSED, "the hub has disabled the repository", f"See {asked.page}."
        case RevisionNotFoundError():
            return Failure.NOT_FOUND, f"it has no revision {asked.revision}", correct
        case HFValidationError():
            return Failure.INVALID, "it names no repository", "Write hf://org/name, and @revision behind it if need be."
        case EntryNotFoundError() if not isinstance(error, LocalEntryNotFoundError):
            return Failure.NOT_FOUND, f"there is no file {asked.file}", correct
        case OfflineModeIsEnabled():
            return Failure.INVALID, "HF_HUB_OFFLINE is set in this environment", "Unset it, or use pvc://."
        case HfHubHTTPError() if error.response is not None:
            return _by_status(error, error.response.status_code, asked)
    return _no_answer(str(error), asked)


def _by_status(error: Exception, status: int, asked: Asked) -> tuple[Failure, str, str]:
    of_secret = f"HF_TOKEN of the Secret {asked.credentials.secret}"
    if status == 429 or status >= 500:
        return Failure.UNREACHABLE, f"the hub answered {status}", "Wait until it serves again."
    if "HF_TOKEN" not in asked.credentials.values:
        return (
            Failure.NOT_FOUND,
            "the hub has no such repository or file, or does not show it without a token",
            f"Correct the address, or name a Secret with your token in {BESIDE}: {_CREATE}",
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return (
            Failure.NOT_FOUND,
            f"the hub has no such repository or file, or does not show it to the owner of the {of_secret}",
            "Correct the address, or use the token of somebody who sees it.",
        )
    if status == 401:
        return (
            Failure.REFUSED,
            f"the hub does not take the {of_secret}: it is wrong, or no longer valid",
            "Make another at https://huggingface.co/settings/tokens, and put it into the Secret.",
        )
    if status == 403:
        return (
            Failure.REFUSED,
            f"the {of_secret} may not read it{_said(error)}",
            "Give the token the permission to read the contents of this repository, or use another.",
        )
    return Failure.INVALID, f"the hub answered {status}", "Correct the address."


def _said(error: Exception) -> str:
    """The hub's own words for a 403, which name the permission that a token lacks."""
    said = error.response.headers.get("X-Error-Message") if isinstance(error, HfHubHTTPError) else None
    return f" ({said[:200].rstrip('.')})" if said else ""


def _gated(asked: Asked) -> tuple[Failure, str, str]:
    if "HF_TOKEN" not in asked.credentials.values:
        return (
            Failure.REFUSED,
            "the repository is gated, and there is no token",
            f"Accept its licence at {asked.page}, and name a Secret with your token in {BESIDE}: {_CREATE}",
        )
    return (
        Failure.REFUSED,
        f"the repository is gated, and the user of the HF_TOKEN in the Secret {asked.credentials.secret} has no access",
        f"Accept its licence at {asked.page} as that user, and wait until it is granted. A fine-grained token needs "
        "the permission to read public gated repositories, too.",
    )


def _no_answer(said: str, asked: Asked) -> tuple[Failure, str, str]:
    host = asked.endpoint.rpartition("://")[2]
    why = "its name can't be resolved" if "resolution" in said or "not known" in said else "no answer came"
    return (
        Failure.UNREACHABLE,
        f"{host} can't be reached from this pod: {why}",
        "Check the network policy (the chart's networkPolicy.egress opens what is not public), or copy it into a "
        "volume and use pvc://.",
    )
