"""Why a model is not served: an adapter's own fault, or answers that can't be trusted."""

from sluice_api.reasons import Reason

_MOST = 1024
"""Characters of a message, which may quote a name or a number of the adapter's as long as its file."""


class AdapterRejected(Exception):
    """An adapter that can't be served as it is. The message says what is wrong, where, and the next step."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message[:_MOST])
        self.reason = reason


class CanaryFailed(Exception):
    """The base model, or a loaded version, does not answer the canary request as it must."""

    reason = Reason.CANARY_FAILED
