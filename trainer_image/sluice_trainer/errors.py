"""The exceptions that become outcomes."""

from collections.abc import Iterator
from contextlib import contextmanager

from sluice_api.pods import PREPARE_MEMORY
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_files.errors import Failure, FileError

MORE_MEMORY = (
    f"Raise resources.memory, of which Prepare has {PREPARE_MEMORY} at most; or let it keep less: cut long rows into "
    "several, leave near out of deduplicate, or tokenise the rows elsewhere (dataset.format: Tokens)."
)
"""What to do where Prepare's memory does not hold what it has to."""


class StageError(Exception):
    """A stage cannot go on; the message says what is wrong, where, and what to do next."""

    def __init__(self, reason: Reason, message: str, code: ExitCode = ExitCode.BAD_INPUT) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.code = code

    def __reduce__(self) -> "tuple[type[StageError], tuple[Reason, str, ExitCode]]":
        """How another process gets it."""
        return StageError, (self.reason, self.message, self.code)


REASONS = {
    Failure.REFUSED: Reason.ACCESS_REFUSED,
    Failure.UNREACHABLE: Reason.DOWNLOAD_FAILED,
    Failure.TOO_LARGE: Reason.SOURCE_UNUSABLE,
    Failure.INVALID: Reason.SOURCE_UNUSABLE,
}
"""Why a source can't be read. Where NOT_FOUND is none of them, the field's own reason says so."""


@contextmanager
def fetching(field: str, credentials: str, not_found: Reason) -> Iterator[None]:
    """Turn an address that can't be read into the error of the field that has it.

    Args:
        field: where the address is: model.uri.
        credentials: where the Secret that opens it is named: model.credentials.
        not_found: the reason where nothing is there.
    """
    try:
        yield
    except FileError as error:
        reason = not_found if error.failure is Failure.NOT_FOUND else REASONS[error.failure]
        code = ExitCode.INTERNAL if error.failure is Failure.UNREACHABLE else ExitCode.BAD_INPUT
        raise StageError(reason, error.in_field(field, credentials), code) from None


class PeerLost(StageError):
    """Another process of the group is gone. This one saves its state, and another attempt goes on from there."""

    def __init__(self, who: str = "Another rank") -> None:
        super().__init__(Reason.POD_LOST, f"{who} of the group is gone", ExitCode.REQUEUE)


class GivenUp(PeerLost):
    """What was written in the background is given up: the process is about to end, and saves a newer state."""
