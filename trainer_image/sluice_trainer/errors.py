"""The exceptions that become outcomes."""

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode


class StageError(Exception):
    """A stage cannot go on; the message says what is wrong, where, and what to do next."""

    def __init__(self, reason: Reason, message: str, code: ExitCode = ExitCode.BAD_INPUT) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.code = code


class PeerLost(StageError):
    """Another process of the group is gone. This one saves its state, and another attempt goes on from there."""

    def __init__(self, who: str = "Another rank") -> None:
        super().__init__(Reason.POD_LOST, f"{who} of the group is gone", ExitCode.REQUEUE)


class GivenUp(PeerLost):
    """What was written in the background is given up: the process is about to end, and saves a newer state."""
