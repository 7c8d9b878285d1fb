"""The one exception that a person can act on."""

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode


class StageError(Exception):
    """A stage cannot go on; the message says what is wrong, where, and what to do next."""

    def __init__(self, reason: Reason, message: str, code: ExitCode = ExitCode.BAD_INPUT) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.code = code
