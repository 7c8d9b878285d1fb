"""Why an adapter can't be loaded."""

from sluice_api.reasons import Reason


class Refusal(Exception):
    """An adapter that can't be loaded as it is: a reason and what, where and the next step."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
