"""The work queue: a key is in it at most once, and at most one worker has it."""

import asyncio
import heapq
import logging
import math
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator

from sluice_operator import metrics
from sluice_operator.cluster.errors import NotLeading, Outdated
from sluice_operator.observe.views import Key
from sluice_operator.reconcile.context import Requeue

logger = logging.getLogger(__name__)

Reconcile = Callable[[Key], Awaitable[Requeue]]

FIRST_BACKOFF = 0.2
LONGEST_BACKOFF = 30.0
ONE_IN = 4
"""Every ONE_IN-th key is taken from the second row, so that nothing there waits for ever."""


class Queue:
    """Keys in two rows, each in order of arrival, and timers for keys that are to come. Used from one event loop.

    Keys that bring GPUs back or hand them out are in the first row. They must not wait until ten thousand new jobs have
    been told that they wait.

    Args:
        goes_first: whether a key belongs into the first row; asked each time the key is added.
        clock: seconds; None for the running event loop's clock, which `take` waits by.
    """

    def __init__(
        self, goes_first: Callable[[Key], bool] = lambda _key: True, clock: Callable[[], float] | None = None
    ) -> None:
        self._goes_first = goes_first
        self._clock = clock
        self._first: OrderedDict[Key, None] = OrderedDict()
        self._second: OrderedDict[Key, None] = OrderedDict()
        self._taken = 0
        self._worked_on: set[Key] = set()
        self._again: set[Key] = set()
        """Keys that were added while they were worked on."""
        self._timers: dict[Key, float] = {}
        self._moments: list[tuple[float, Key]] = []
        """A heap of all timers. Some of its entries are out of date: `_timers` decides."""
        self._failures: dict[Key, int] = {}
        self._asked: dict[Key, float] = {}
        """Since when a key waits to be looked at. It is forgotten once a look has succeeded."""
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        """Keys that a worker could take now."""
        return len(self._first) + len(self._second)

    def failing(self) -> Iterable[Key]:
        """Keys that failed when they were last tried."""
        return self._failures.keys()

    def waiting(self) -> Iterator[tuple[Key, float]]:
        """Keys to be looked at, each with the seconds since that was first asked for."""
        now = self._now()
        return ((key, now - asked) for key, asked in self._asked.items())

    def begin(self) -> None:
        """Count waiting times from now on. Before, another process led and looked at the keys."""
        self._asked = dict.fromkeys(self._asked, self._now())

    def add(self, key: Key) -> None:
        """Have a key looked at soon. A key that failed still waits for the end of its back-off."""
        self._asked.setdefault(key, self._now())
        if key in self._worked_on:
            self._again.add(key)
        elif key not in self._failures:
            self._enter(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Have a key looked at after a while. If this is asked several times, the earliest moment counts."""
        when = self._now() + seconds
        if when < self._timers.get(key, math.inf):
            self._timers[key] = when
            heapq.heappush(self._moments, (when, key))
            self._filled.set()

    def next_moment(self) -> float | None:
        """When the next timer ends; None without timers."""
        while self._moments and self._timers.get(self._moments[0][1]) != self._moments[0][0]:
            heapq.heappop(self._moments)
        return self._moments[0][0] if self._moments else None

    def pop(self) -> Key | None:
        """The next key; None if there is none now. The caller alone has it until `succeeded`, `failed` or `dropped`."""
        self._ring()
        if not len(self):
            return None
        self._taken += 1
        row = self._first
        if self._second and (not row or self._taken % ONE_IN == 0):
            row = self._second
        key, _ = row.popitem(last=False)
        self._worked_on.add(key)
        self._timers.pop(key, None)
        return key

    async def take(self) -> Key:
        """Wait for the next key and return it."""
        while (key := self.pop()) is None:
            self._filled.clear()
            moment = self.next_moment()
            try:
                async with asyncio.timeout(None if moment is None else moment - self._now()):
                    await self._filled.wait()
            except TimeoutError:
                continue
        return key

    def succeeded(self, key: Key, requeue: Requeue) -> None:
        """A key was worked on. It is looked at again after `requeue`, if that is given."""
        self._failures.pop(key, None)
        self._asked.pop(key, None)
        self._worked_on.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        if requeue is not None:
            self.add_after(key, requeue.total_seconds())

    def failed(self, key: Key) -> float:
        """Have a key tried again after a back-off: longer each time, jittered. Returns it in seconds."""
        self._worked_on.discard(key)
        self._again.discard(key)
        count = self._failures[key] = self._failures.get(key, 0) + 1
        backoff = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(count - 1, 16)) * random.uniform(0.5, 1.0)
        self.add_after(key, backoff)
        return backoff

    def dropped(self, key: Key) -> None:
        """Forget a key that was not worked on to the end. The next leader begins with all keys."""
        self._worked_on.discard(key)
        self._again.discard(key)
        self._failures.pop(key, None)
        self._asked.pop(key, None)

    def _enter(self, key: Key) -> None:
        """Put a key at the end of its row. A waiting key keeps its place, unless it may now move to the first row."""
        if key in self._first:
            return
        if self._goes_first(key):
            self._second.pop(key, None)
            self._first[key] = None
        else:
            self._second[key] = None
        self._filled.set()

    def _ring(self) -> None:
        """Enter the keys for which a timer has ended."""
        while (moment := self.next_moment()) is not None and moment <= self._now():
            _, key = heapq.heappop(self._moments)
            del self._timers[key]
            self._asked.setdefault(key, self._now())
            if key in self._worked_on:
                self._again.add(key)
            else:
                self._enter(key)

    def _now(self) -> float:
        return self._clock() if self._clock else asyncio.get_running_loop().time()


async def work(queue: Queue, reconcile: Reconcile) -> None:
    """Reconcile one key after another until this process no longer leads."""
    while True:
        key = await queue.take()
        began = time.monotonic()
        try:
            requeue = await reconcile(key)
        except NotLeading:
            queue.dropped(key)
            return
        except Outdated as outdated:
            logger.info("looked again: the state had changed", extra={"key": str(key), "why": str(outdated)})
            queue.failed(key)
        except Exception as error:
            backoff = queue.failed(key)
            metrics.RECONCILE_ERRORS.labels(key.kind).inc()
            logger.exception("reconcile failed", extra={"key": str(key), "error": str(error), "retry_in": backoff})
        except BaseException:
            queue.dropped(key)
            raise
        else:
            queue.succeeded(key, requeue)
        metrics.RECONCILE_SECONDS.labels(key.kind).observe(time.monotonic() - began)
        metrics.QUEUE_DEPTH.set(len(queue))
