"""The queue: one worker a key, nothing lost, nothing hot, nobody starved."""

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from sluice_operator import metrics
from sluice_operator.cluster.errors import Gone, NotLeading
from sluice_operator.observe.views import Key
from sluice_operator.reconcile.context import Requeue
from sluice_operator.reconcile.queue import LONGEST_BACKOFF, Queue, work


class SkippingLoop(asyncio.SelectorEventLoop):
    """A real event loop whose clock jumps to the next timer when there is nothing else to do."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped = 0.0

    def time(self) -> float:
        return self.skipped

    def _run_once(self) -> None:
        pending: Any = self._scheduled  # type: ignore[attr-defined]
        while pending and pending[0]._cancelled:
            heapq.heappop(pending)._scheduled = False
        if not self._ready and pending:  # type: ignore[attr-defined]
            self.skipped = max(self.skipped, pending[0]._when)
        super()._run_once()  # type: ignore[misc]


@pytest.fixture
def loop() -> Iterator[SkippingLoop]:
    made = SkippingLoop()
    made.set_debug(False)
    yield made
    made.close()


def key(name: str) -> Key:
    return Key("FineTuneJob", "team", name)


Body = Callable[[Key], Awaitable[Requeue]]


def run(loop: SkippingLoop, script: Callable[[Queue], Awaitable[None]], reconcile: Body, workers: int = 3) -> Queue:
    """Run a script beside workers, then let the loop come to rest (or go on for an hour of its clock)."""
    queue = Queue()

    async def main() -> None:
        tasks = [asyncio.create_task(work(queue, reconcile)) for _ in range(workers)]
        await script(queue)
        await asyncio.sleep(3600)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop.run_until_complete(main())
    return queue


def test_key_has_one_worker_at_a_time_and_is_never_forgotten(loop: SkippingLoop) -> None:
    working: set[Key] = set()
    seen: dict[Key, int] = {}
    latest = 0

    async def reconcile(one: Key) -> Requeue:
        assert one not in working
        working.add(one)
        saw = latest
        await asyncio.sleep(0.01)
        working.discard(one)
        seen[one] = saw
        return None

    async def script(queue: Queue) -> None:
        nonlocal latest
        for change in range(1, 101):
            latest = change
            for name in "abcde":
                queue.add(key(name))
            await asyncio.sleep(0.001)

    run(loop, script, reconcile)
    assert seen == {key(name): 100 for name in "abcde"}, "a change that came during a reconcile was lost"


def test_key_added_twice_is_reconciled_once(loop: SkippingLoop) -> None:
    done: list[Key] = []

    async def reconcile(one: Key) -> Requeue:
        done.append(one)
        return None

    async def script(queue: Queue) -> None:
        for _ in range(10):
            queue.add(key("a"))

    run(loop, script, reconcile)
    assert done == [key("a")]


def test_requeue_comes_when_it_is_due_and_only_once(loop: SkippingLoop) -> None:
    at: list[float] = []

    async def reconcile(_: Key) -> Requeue:
        at.append(loop.time())
        return timedelta(seconds=10) if len(at) < 3 else None

    async def script(queue: Queue) -> None:
        queue.add(key("a"))
        await asyncio.sleep(5)
        queue.add(key("a"))  # an event in between: the old wish is void, a new one counts from here

    run(loop, script, reconcile)
    assert at == pytest.approx([0, 5, 15], abs=0.01)


def test_add_after_takes_the_earliest_delay(loop: SkippingLoop) -> None:
    at: list[float] = []

    async def reconcile(_: Key) -> Requeue:
        at.append(loop.time())
        return None

    async def script(queue: Queue) -> None:
        queue.add_after(key("a"), 30)
        queue.add_after(key("a"), 10)
        queue.add_after(key("a"), 20)

    run(loop, script, reconcile)
    assert at == pytest.approx([10], abs=0.01)


def test_backoff_grows_with_failures_and_events_do_not_shorten_it(loop: SkippingLoop) -> None:
    at: list[float] = []

    async def reconcile(_: Key) -> Requeue:
        at.append(loop.time())
        raise ValueError("broken")

    async def script(queue: Queue) -> None:
        for _ in range(1000):
            queue.add(key("a"))
            await asyncio.sleep(0.1)

    before = metrics.RECONCILE_ERRORS.labels("FineTuneJob")._value.get()
    run(loop, script, reconcile)
    pauses = [later - earlier for earlier, later in pairwise(at)]
    assert len(at) < 260, "hot loop"
    assert pauses[0] < 0.5
    assert all(LONGEST_BACKOFF / 2 <= pause <= LONGEST_BACKOFF for pause in pauses[10:])
    assert metrics.RECONCILE_ERRORS.labels("FineTuneJob")._value.get() == before + len(at)


def test_success_resets_the_backoff(loop: SkippingLoop) -> None:
    at: list[float] = []
    fails = [True] * 6 + [False, True, False]

    async def reconcile(_: Key) -> Requeue:
        at.append(loop.time())
        if fails.pop(0):
            raise ValueError("broken")
        return timedelta(seconds=1) if fails else None

    async def script(queue: Queue) -> None:
        queue.add(key("a"))

    run(loop, script, reconcile)
    assert not fails
    assert at[-1] - at[-2] < 0.5


def test_a_failing_key_does_not_hold_others_up(loop: SkippingLoop) -> None:
    done: dict[Key, int] = {}

    async def reconcile(one: Key) -> Requeue:
        if one.name == "poison":
            raise ValueError("broken")
        done[one] = done.get(one, 0) + 1
        return timedelta(seconds=60)

    async def script(queue: Queue) -> None:
        queue.add(key("poison"))
        queue.add(key("good"))

    run(loop, script, reconcile, workers=1)
    assert done[key("good")] >= 59


def test_keys_are_served_in_the_order_in_which_they_came(loop: SkippingLoop) -> None:
    done: list[str] = []

    async def reconcile(one: Key) -> Requeue:
        done.append(one.name)
        queue.add(key("busy"))
        if len(done) > 50:
            raise asyncio.CancelledError
        return None

    queue = Queue()

    async def main() -> None:
        queue.add(key("busy"))
        for number in range(20):
            queue.add(key(str(number)))
        await asyncio.gather(work(queue, reconcile), return_exceptions=True)

    loop.run_until_complete(main())
    assert done[:21] == ["busy", *map(str, range(20))]


def test_urgent_keys_go_first_and_the_others_are_not_forgotten(loop: SkippingLoop) -> None:
    urgent = {key(name) for name in "abcdef"}
    queue = Queue(urgent.__contains__)

    async def main() -> str:
        for name in "xyzabcdef":
            queue.add(key(name))
        urgent.add(key("z"))  # it has got GPUs meanwhile
        queue.add(key("z"))
        return "".join([(await queue.take()).name for _ in range(len(queue))])

    assert loop.run_until_complete(main()) == "abcxdefyz"


def test_an_outdated_view_is_looked_at_again_without_an_error(
    loop: SkippingLoop, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    async def reconcile(_: Key) -> Requeue:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Gone("pod is not there any more")
        return None

    async def script(queue: Queue) -> None:
        queue.add(key("a"))

    run(loop, script, reconcile)
    assert calls == 2
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_queue_stops_when_not_leading_and_the_next_term_resumes(loop: SkippingLoop) -> None:
    queue = Queue()
    done: list[str] = []
    leads = False

    async def reconcile(one: Key) -> Requeue:
        if not leads:
            raise NotLeading("no")
        done.append(one.name)
        return None

    async def main() -> None:
        nonlocal leads
        queue.add(key("a"))
        queue.failed(await queue.take())
        await asyncio.sleep(1)
        queue.add(key("b"))
        await asyncio.gather(*(work(queue, reconcile) for _ in range(2)))
        leads = True
        for name in "ab":
            queue.add(key(name))
        task = asyncio.create_task(work(queue, reconcile))
        await asyncio.sleep(1)
        task.cancel()

    loop.run_until_complete(main())
    assert sorted(done) == ["a", "b"]


def test_a_cancelled_worker_leaves_its_key_free(loop: SkippingLoop) -> None:
    queue = Queue()

    async def reconcile(_: Key) -> Requeue:
        await asyncio.sleep(100)
        return None

    async def main() -> None:
        queue.add(key("a"))
        task = asyncio.create_task(work(queue, reconcile))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        queue.add(key("a"))
        assert await queue.take() == key("a")

    loop.run_until_complete(main())


def test_queue_lists_failing_and_waiting_keys() -> None:
    now = 100.0
    queue = Queue(clock=lambda: now)
    queue.add(key("a"))
    now = 130.0
    queue.add(key("a"))  # it waits since it was asked for first
    assert dict(queue.waiting()) == {key("a"): 30}
    assert queue.pop() == key("a")
    queue.failed(key("a"))
    assert [*queue.failing()] == [key("a")]
    assert dict(queue.waiting()) == {key("a"): 30}, "a failure is no answer"
    now = 130.0 + LONGEST_BACKOFF
    assert queue.pop() == key("a")
    queue.add(key("a"))  # asked for again while it is worked on
    now = 170.0
    queue.succeeded(key("a"), timedelta(hours=1))
    assert [*queue.failing()] == []
    now = 171.0
    assert dict(queue.waiting()) == {key("a"): 1}
    assert queue.pop() == key("a")
    queue.succeeded(key("a"), timedelta(hours=1))
    assert dict(queue.waiting()) == {}, "what is due in an hour does not wait"
    assert queue.pop() is None
    now = 171.0 + 3600
    assert queue.next_moment() == now
    assert queue.pop() == key("a")
    assert dict(queue.waiting()) == {key("a"): 0}
    queue.dropped(key("a"))
    assert dict(queue.waiting()) == {}


def test_waiting_time_of_a_key_begins_with_the_term() -> None:
    """It hears of everything and looks at nothing; leading, it said at first that pools had waited for hours."""
    now = 0.0
    queue = Queue(clock=lambda: now)
    queue.add(key("a"))
    now = 7200.0
    queue.begin()
    queue.add(key("a"))
    now = 7201.0
    assert dict(queue.waiting()) == {key("a"): 1}
