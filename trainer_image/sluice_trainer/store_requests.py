"""Requests to an object store that is away for a while now and then, by a process that may have to end meanwhile."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from sluice_files.errors import Failure, FileError
from sluice_trainer import logs
from sluice_trainer.errors import GivenUp

T = TypeVar("T")

PATIENCE_SECONDS = 300.0
"""For how long after its first failure a request is made again: in this time a store that restarts, or a network that
was cut, is back. A request itself may take as long as it takes; the store's library ends one in which nothing moves."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 15.0


class StoreRequests:
    """The requests of one process. Any thread may make them, and any other may say that the process ends soon."""

    def __init__(self, host: str) -> None:
        """Args: host: For messages."""
        self._host = host
        self._changed = threading.Condition()
        self._given_up = 0
        self._end = float("inf")

    @property
    def generation(self) -> int:
        """What belongs together: requests of an earlier generation are given up."""
        return self._given_up

    def end_soon(self, seconds: float, *, give_up: bool) -> None:
        """Give up every request in so many seconds, and those that are under way at once if that is asked for."""
        with self._changed:
            self._end = time.monotonic() + seconds
            self._given_up += give_up
            self._changed.notify_all()

    def make(self, request: Callable[[], T], generation: int) -> T:
        """Make a request, and again while the store can't be reached.

        Args:
            request: What asks the store. It may be called several times.
            generation: `generation`, as it was when the work began that the request is a part of.

        Raises:
            FileError: the store refuses it, or was away for too long.
            GivenUp: the process ends, and this is not needed any more.
        """
        until, pause = float("inf"), _FIRST_PAUSE_SECONDS
        while True:
            try:
                return self._once(request, generation)
            except FileError as error:
                now = time.monotonic()
                until = min(until, now + PATIENCE_SECONDS)
                if error.failure is not Failure.UNREACHABLE or now + pause > min(until, self._end):
                    raise
                logs.warning("the store can't be reached", why=error.message, again_in_seconds=pause)
            with self._changed:
                self._changed.wait_for(lambda: generation != self._given_up, pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _once(self, request: Callable[[], T], generation: int) -> T:
        """Make a request in a thread of its own: it can't be interrupted, but waited for no longer."""
        answer: _Answer[T] = _Answer()

        def ask() -> None:
            try:
                answer.value = (request(),)
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                answer.error = error
            with self._changed:
                answer.is_there = True
                self._changed.notify_all()

        if generation != self._given_up:
            raise GivenUp
        threading.Thread(target=ask, name="store", daemon=True).start()
        with self._changed:
            while not answer.is_there and generation == self._given_up:
                left = self._end - time.monotonic()
                if left <= 0:
                    raise FileError(Failure.UNREACHABLE, f"{self._host} has not taken it in time.")
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
        if answer.error is not None:
            raise answer.error
        if not answer.value:
            raise GivenUp
        return answer.value[0]


class _Answer(Generic[T]):
    """What came of a request."""

    is_there = False
    value: tuple[T] | tuple[()] = ()
    error: BaseException | None = None
