"""What the API server may answer instead of doing what was asked."""


class NotLeading(Exception):
    """This process does not surely hold the lease: it may not write."""


class Outdated(Exception):
    """The object has changed since it was looked at; the store knows its new state. Look again, then decide again."""


class Gone(Outdated):
    """The object is not there any more, or another one has its name; the store knows."""


class ApiError(Exception):
    """A refusal, or no answer after several attempts."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        """The HTTP status; 0 when there was no answer."""
        self.reason = reason
        """In one word, as a metav1.Status has it: NotFound, AlreadyExists, Conflict, Invalid, Forbidden."""
        self.message = message

    @property
    def is_passing(self) -> bool:
        """Whether the same request may well succeed a moment later."""
        return self.status in (0, 429, 500, 502, 503, 504)
