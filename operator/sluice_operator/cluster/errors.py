"""What the API server may answer instead of doing what was asked."""

_NO_ANSWER_OF_ITS_OWN = frozenset({401, 404, 408, 409, 429})
"""Of 4xx, those that are about the moment or about us: credentials, something gone, a conflict, too many requests."""
_WEBHOOK_IS_AWAY = "failed calling webhook"
"""The API server's words when a webhook without which it may not write does not answer: that may last for days."""


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
        """Whether the same request may well succeed a moment later.

        Not where a webhook is away: each attempt waits for it, for as long as its owner likes, and others wait with it.
        """
        return self.status in (0, 429, 500, 502, 503, 504) and _WEBHOOK_IS_AWAY not in self.message

    @property
    def is_refusal(self) -> bool:
        """Whether the answer stays the same until somebody changes something: a quota, a policy, a webhook, a name."""
        understood = 400 <= self.status < 500 and self.status not in _NO_ANSWER_OF_ITS_OWN
        return understood or _WEBHOOK_IS_AWAY in self.message


class NameTaken(ApiError):
    """An object of that name is there and is not ours, so nothing of it was changed."""

    def __init__(self, message: str) -> None:
        super().__init__(409, "AlreadyExists", message)

    @property
    def is_refusal(self) -> bool:
        """Always: it stays until somebody deletes it."""
        return True
