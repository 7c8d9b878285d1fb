"""What can go wrong with an address, for whoever turns it into an outcome of their own."""

from enum import StrEnum


class Failure(StrEnum):
    """Whose turn it is to mend it."""

    NOT_FOUND = "NotFound"
    """There is no such bucket, repository, revision or file."""
    REFUSED = "Refused"
    """The Secret that opens it is missing, incomplete or wrong, or may not do this. Its owner can mend it."""
    UNREACHABLE = "Unreachable"
    """The network or the other side failed: the same request may succeed later."""
    TOO_LARGE = "TooLarge"
    """More bytes than there is room for."""
    INVALID = "Invalid"
    """The spec is wrong: the address can't be meant so, or it needs a Secret and names none."""


BESIDE = "the credentials beside the address"
"""How a message calls the field that it doesn't know."""


class FileError(Exception):
    """Bytes could not be read or written. The message names the address and the remedy, and never a credential."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message

    def in_field(self, field: str, credentials: str) -> str:
        """The message for whoever wrote the address.

        Args:
            field: where it is: dataset.sources[0].uri.
            credentials: where the Secret that opens it is named: dataset.sources[0].credentials.
        """
        return f"{field} {self.message.replace(BESIDE, credentials)}"
