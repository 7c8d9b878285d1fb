"""What may go wrong with a request to the API server?"""

_NO_ANSWER_OF_ITS_OWN = frozenset({401, 404, 408, 409, 429})
"""Of 4xx, those that are no refusal: credentials, something gone, a timeout, a conflict, too many requests."""
_WEBHOOK_IS_AWAY = "failed calling webhook"
"""The API server's words when a required webhook does not answer. That may last for days."""


class NotLeading(Exception):
    """This process does not surely hold the lease, so it may not write."""


class Outdated(Exception):
    """The object has changed since it was read, and the store knows its new state. Decide again."""


class Gone(Outdated):
    """The object is gone, or another one has its name. The store knows."""


class ApiError(Exception):
    """A refusal, or no answer after all attempts."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        """The HTTP status; 0 when there was no answer."""
        self.reason = reason
        """One word, as in a metav1.Status: NotFound, AlreadyExists, Conflict, Invalid, Forbidden."""
        self.message = message

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed a moment later.

        Not if a webhook is away: each attempt would wait for it as long as its owner allows, and other work too.
        """
        return self.status in (0, 429, 500, 502, 503, 504) and _WEBHOOK_IS_AWAY not in self.message

    @property
    def is_refusal(self) -> bool:
        """Whether the answer stays the same until somebody changes something: a quota, a policy, a webhook, a name."""
        understood = 400 <= self.status < 500 and self.status not in _NO_ANSWER_OF_ITS_OWN
        return understood or _WEBHOOK_IS_AWAY in self.message


class NameTaken(ApiError):
    """An object of that name exists and is not ours, so it was left unchanged."""

    def __init__(self, message: str) -> None:
        super().__init__(409, "AlreadyExists", message)

    @property
    def is_refusal(self) -> bool:
        """Always True: the name is taken until somebody deletes that object."""
        return True
