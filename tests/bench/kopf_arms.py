"""The operator as a process, with its watches as they are or through nothing but kopf's public names; see bench_kopf.

python -m tests.bench.kopf_arms ARM FILE JOBS: moments go into FILE, a line each, and the count of events beside it.
"""

import asyncio
import contextlib
import logging
import mmap
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from struct import Struct
from typing import Any, cast

import kopf

import sluice_operator.__main__ as operator
from sluice_operator.cluster.client import in_cluster
from sluice_operator.cluster.kinds import KINDS
from sluice_operator.handlers import kopf_watch
from sluice_operator.handlers.watching import take_event
from sluice_operator.observe.parse import WATCHED
from sluice_operator.reconcile.reconcilers import RECONCILERS

logger = logging.getLogger(__name__)

TAKEN = Struct("=Qd")
"""How many events of FineTuneJobs the store has taken, and when the last."""
ARMS = ("adapted", "public", "tuned")


class PublicWatches:
    """The operator's watches by `on.event` handlers, and by beginning kopf again when it has ended.

    It promises less than kopf_watch.Watches: that a list was empty is not seen, nor that a single watch is silent.
    """

    tuned = False

    def __init__(self, take: Callable[[str, kopf.RawEvent], None], listed: Callable[[str], None]) -> None:
        self._take = take
        self._listed = listed
        self._loop = asyncio.get_running_loop()
        self._due: dict[str, asyncio.TimerHandle] = {}

    def silence(self) -> float:
        """Handlers get no bookmarks, so that a kind brings nothing says nothing."""
        return 0.0

    async def start(self, name: str, stop: asyncio.Event, kinds: Iterable[str] = WATCHED) -> "asyncio.Task[None]":
        """Start kopf in a thread with a loop of its own, as kopf's docs on embedding advise.

        When one watch fails, kopf ends, and leaves its other watches behind unless it may cancel all tasks of its loop.
        """
        kinds = list(kinds)
        settings = kopf_watch.kopf_settings()
        if self.tuned:
            settings.queueing.idle_timeout = 0.1
            settings.persistence.diffbase_storage = NoDiff()
            settings.persistence.progress_storage = NoProgress()
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(login)
        for kind in kinds:
            where = KINDS[kind]
            kopf.on.event(where.group, where.version, where.plural, id=kind, registry=registry)(self._handle)

        async def begin() -> None:
            for kind in kinds:
                self._loop.call_soon_threadsafe(self._listed, KINDS[kind].plural)
            identity = cast("Any", name)  # kopf would ask for our user's name, which a uid may not have
            await kopf.operator(
                registry=registry, settings=settings, identity=identity, standalone=True, clusterwide=True
            )

        return asyncio.create_task(KopfThread(begin).run(stop), name="kopf")

    async def _handle(self, event: kopf.RawEvent, resource: kopf.Resource, **_: Any) -> None:
        self._loop.call_soon_threadsafe(self._brought, resource.plural, event)

    def _brought(self, plural: str, event: kopf.RawEvent) -> None:
        self._take(plural, event)
        if event["type"] is None:  # from a list: two seconds after the last of these, the list is taken to be complete
            if plural in self._due:
                self._due.pop(plural).cancel()
            self._due[plural] = self._loop.call_later(2, self._listed, plural)


class KopfThread:
    """kopf in a thread, begun again whenever it has ended with a failure."""

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._begin = begin
        self._stopped = False
        self._cancel: Callable[[], object] = bool

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set."""
        running = asyncio.ensure_future(asyncio.to_thread(self._endure))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        self._stopped = True
        stopping.cancel()
        self._cancel()
        await running

    def _endure(self) -> None:
        failures = 0
        while not self._stopped:
            try:
                asyncio.run(self._once())
            except asyncio.CancelledError:
                return
            except Exception as error:  # noqa: BLE001 - what kopf's watches raise has no public name
                failures += 1
                logger.warning("kopf has ended and begins anew", extra={"error": str(error)})
                time.sleep(min(kopf_watch.LONGEST_PAUSE, kopf_watch.FIRST_PAUSE * 2.0 ** (failures - 1)))

    async def _once(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._cancel = lambda: loop.is_closed() or loop.call_soon_threadsafe(task.cancel)
        await self._begin()


def login(**context: Any) -> kopf.ConnectionInfo | None:
    """As the operator logs in."""
    return kopf.login_with_service_account(**context) if in_cluster() else kopf.login_with_kubeconfig(**context)


class NoDiff(kopf.DiffBaseStorage):
    """kopf works out for each event what has changed since the last; nobody asks for it."""

    def build(self, *, body: kopf.Body, extra_fields: Iterable[kopf.FieldSpec] | None = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        pass


class NoProgress(kopf.ProgressStorage):
    """Nothing is kept on objects."""

    def fetch(self, *, key: kopf.HandlerId, body: kopf.Body) -> None:
        return None

    def store(self, *, key: kopf.HandlerId, record: kopf.ProgressRecord, body: kopf.Body, patch: kopf.Patch) -> None:
        pass

    def purge(self, *, key: kopf.HandlerId, body: kopf.Body, patch: kopf.Patch) -> None:
        pass

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        pass

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


def main() -> None:
    """Run the operator, and note what happens when."""
    arm, file, jobs = sys.argv[1:4]
    if arm != "adapted":
        PublicWatches.tuned = arm == "tuned"
        vars(operator).update(Watches=PublicWatches)
    marks = Path(file).open("a", buffering=1)  # noqa: SIM115 - for as long as the process lives
    count(Path(f"{file}.taken"))
    note_decisions(marks.write, int(jobs))
    sys.argv[1:] = ["run"]
    with contextlib.closing(marks):
        operator.main()


def count(path: Path) -> None:
    """Keep in a file how many events of jobs the store has taken."""
    path.write_bytes(bytes(TAKEN.size))
    with path.open("r+b") as opened:
        shared = mmap.mmap(opened.fileno(), TAKEN.size)
    taken = 0

    def counting(store: Any, plural: str, event: kopf.RawEvent) -> None:
        nonlocal taken
        take_event(store, plural, event)
        if plural == "finetunejobs":
            taken += 1
            TAKEN.pack_into(shared, 0, taken, time.monotonic())

    vars(operator).update(take_event=counting)


def note_decisions(write: Callable[[str], object], jobs: int) -> None:
    """Note when the pool was decided first, and when so many jobs had been."""
    decided: dict[str, set[Any]] = {"GPUPool": set(), "FineTuneJob": set()}
    noted_by: dict[str, Any] = {**RECONCILERS}
    for kind, (wanted, name) in {"GPUPool": (1, "pool"), "FineTuneJob": (jobs, "jobs")}.items():

        def noting(reconcile: Any, known: set[Any] = decided[kind], wanted: int = wanted, name: str = name) -> Any:
            async def noted(key: Any, *rest: Any) -> Any:
                found = await reconcile(key, *rest)
                if len(known) < wanted:
                    known.add(key)
                    if len(known) == wanted:
                        write(f"{name} {time.monotonic()}\n")
                return found

            return noted

        noted_by[kind] = noting(RECONCILERS[kind])
    vars(operator).update(RECONCILERS=noted_by)


if __name__ == "__main__":
    main()
