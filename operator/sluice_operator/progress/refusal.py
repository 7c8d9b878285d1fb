"""Why a report is not accepted: one name for the metric's label, the answer's body and its status."""

from enum import StrEnum


class Refusal(StrEnum):
    """A closed list, each with the HTTP status that says it."""

    status: int

    def __new__(cls, name: str, status: int) -> "Refusal":
        """A member whose value is its name."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.status = status
        return member

    NOT_LEADING = "not_leading", 503
    UNAVAILABLE = "unavailable", 503
    RATE_LIMITED = "rate_limited", 429

    TOO_LARGE = "too_large", 413
    MALFORMED = "malformed", 400

    NO_TOKEN = "no_token", 401
    WRONG_AUDIENCE = "wrong_audience", 401
    EXPIRED_TOKEN = "expired_token", 401
    INVALID_TOKEN = "invalid_token", 401

    UNBOUND_TOKEN = "unbound_token", 403
    DELETED_POD = "deleted_pod", 403
    ENDED_POD = "ended_pod", 403
    NOT_A_TRAINER = "not_a_trainer", 403
    NOT_AN_ENGINE = "not_an_engine", 403
    OTHER_JOBS_POD = "other_jobs_pod", 403
    OTHER_ENGINES_POD = "other_engines_pod", 403
    RECREATED_JOB = "recreated_job", 403
    RECREATED_ENGINE = "recreated_engine", 403

    OTHER_ATTEMPT = "other_attempt", 409
    FENCED_ATTEMPT = "fenced_attempt", 409
    STALE_SEQUENCE = "stale_sequence", 409


class Refused(Exception):
    """A report that is not accepted."""

    def __init__(self, refusal: Refusal, message: str, retry_after: int | None = None) -> None:
        """`message` tells the poster what was wrong; `retry_after` is in seconds."""
        super().__init__(message)
        self.refusal = refusal
        self.message = message
        self.retry_after = retry_after
