"""The only file that knows how kopf works inside. It is written for one version of kopf, and refuses any other.

kopf's public way to see every object is a `kopf.on.event` handler. Both ways were measured with 10,000 jobs in one run
on two busy cores, with kopf's settings as they are and tuned. These are medians of three starts, of two for `on.event`
(2026-11-29; docs/benchmarks/kopf.md has the ranges and the conditions):

                                               this file  on.event   tuned
    resident when quiet, MiB                         236       345     304
    start to the first decision, s                  26.5      45.1    53.2
    processor time of a start, s                    22.8      55.7    49.4
    events a second, catching up                     908       452     648
    processor time, ms an event (live)              3.10      5.38    4.34

So the public way misses our goals: 250 MiB, and a first decision within 30 s. kopf keeps a task, a queue and a memory
for each object, so that a handler sees one object's events in order, and works out for each event which handlers it is
for. Our store needs no order: it goes by resourceVersion. One thing of kopf's is replaced here: `infinite_watch`, the
generator from which kopf's watcher takes the events of a kind. Ours wraps it, puts every event into the store, and
passes only bookmarks on. Three promises need the same place:

- **A broken watch begins anew, alone.** kopf raises WatchingError for a watch's ERROR event of any code but 410, and
  lets a failed list through. Both end kopf (continuous_watch: "Other watch errors should be fatal for the operator").
  An API server that restarts, or a slow etcd, sends such events (codes 500 and 504). By public means kopf has to be
  begun again: for 5 s no watch is read, and then every kind is listed, where here one kind is listed after 0.5 s.
- **What was deleted between two lists is found.** kopf tells nobody. `Bookmark.LISTED` says that kopf has listed a kind
  anew; then Resync lists that kind too, and compares. Handlers see a list's objects only, so never an empty list.
- **A silent watch is noticed.** Bookmarks are the only sign of life of a kind that seldom changes. Handlers get none.

Beside that function, the names Bookmark, WatchingError and APIError are private. All else is public:
`kopf.spawn_tasks`, `kopf.run_tasks`, `kopf.OperatorSettings`, `kopf.on.login`, and `kopf.on.event` to name the kinds.
`kopf.on.startup`, `on.cleanup` and `on.probe` would not make this simpler. Metrics, the certificate and the wait for
our kinds come before kopf. The lease is left while kopf still watches. kopf answers probes on a port of its own,
without TLS.

To upgrade kopf, read its `infinite_watch`, `continuous_watch` and `queueing.watcher` again, change VERSION here and
the pin in pyproject.toml, and run `python3 -m dev lock`, `tests/unit/operator/test_kopf_watch.py`,
`tests/integration/test_watch_faults.py` and `python -m tests.bench kopf`.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from importlib.metadata import version
from typing import Any

import aiohttp
import kopf
from kopf._cogs.clients import errors, watching

from sluice_operator import metrics
from sluice_operator.clock import passing
from sluice_operator.cluster.client import in_cluster
from sluice_operator.cluster.kinds import KINDS
from sluice_operator.cluster.lists import PAGE
from sluice_operator.observe.parse import WATCHED

logger = logging.getLogger(__name__)

VERSION = "1.45.2"
"""The only version of kopf whose internals were read for this file."""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
FAILURES = (
    watching.WatchingError,
    errors.APIError,
    aiohttp.ClientError,
    TimeoutError,
    ValueError,  # a line of the stream that is no JSON
)

Watch = Callable[..., AsyncIterator[Any]]
KOPFS_WATCH: Watch = watching.infinite_watch


class Watches:
    """All watches of this process: where their events go, when each last gave a sign, and how often it broke."""

    def __init__(
        self,
        take: Callable[[str, kopf.RawEvent], None],
        listed: Callable[[str], None],
        clock: Callable[[], float] = passing,
    ) -> None:
        """`take` is called with a plural name for each event of that kind; `listed` when kopf has listed it anew."""
        self._take = take
        self._listed = listed
        self._clock = clock
        self._signs: dict[str, float] = {}

    async def start(self, name: str, stop: asyncio.Event, kinds: Iterable[str] = WATCHED) -> asyncio.Task[None]:
        """Start kopf in this event loop; the task ends when `stop` is set, or with the failure that ends kopf.

        kopf takes over the signal handlers of SIGTERM and SIGINT: set your own afterwards.

        Raises:
            RuntimeError: kopf is of another version than this file is written for.
        """
        if (installed := version("kopf")) != VERSION:
            raise RuntimeError(f"kopf {installed} is installed, and handlers/kopf_watch.py adapts {VERSION} only")
        watching.infinite_watch = self.enduring(KOPFS_WATCH)
        tasks = await kopf.spawn_tasks(
            registry=registry(kinds),
            settings=kopf_settings(),
            identity=name,  # type: ignore[arg-type]  # else kopf asks for our user's name, which a uid may not have
            standalone=True,
            clusterwide=True,
            stop_flag=stop,
        )
        return asyncio.create_task(kopf.run_tasks(tasks, ignored=_Everything()), name="kopf")

    def silence(self) -> float:
        """Seconds since the watch that has been silent for longest brought something, or began; 0 before any has.

        That it is tried again and again says nothing: an API server that can't be reached is silent.
        """
        return max((self._clock() - sign for sign in self._signs.values()), default=0.0)

    def enduring(self, watch: Watch) -> Watch:
        """The bookmarks of the same watch, begun again after every failure."""

        async def endure(*, resource: Any, **options: Any) -> AsyncIterator[Any]:
            failures = 0
            self._signs.setdefault(resource.plural, self._clock())
            while True:
                try:
                    async for event in watch(resource=resource, **options):
                        self._signs[resource.plural] = self._clock()
                        if event is watching.Bookmark.LISTED:
                            failures = 0
                            self._listed(resource.plural)
                        if isinstance(event, watching.Bookmark) or event["type"] == "BOOKMARK":
                            yield event
                        else:
                            self._take(resource.plural, event)
                            await asyncio.sleep(0)  # a page of a list comes at once: others have their turn
                except FAILURES as error:
                    failures += 1
                    metrics.WATCH_ERRORS.labels(resource.plural).inc()
                    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)
                    logger.warning(
                        "a watch broke and begins anew",
                        extra={"kind": resource.plural, "error": str(error), "retry_in": round(pause, 2)},
                    )
                    await asyncio.sleep(pause)
                else:
                    return

        return endure


class _Everything(Collection["asyncio.Task[Any]"]):
    """kopf takes every task that was made since its start for its own, and cancels it at its end. None is."""

    def __contains__(self, task: object) -> bool:
        return True

    def __iter__(self) -> "Iterator[asyncio.Task[Any]]":
        return iter(())

    def __len__(self) -> int:
        return 0


def registry(kinds: Iterable[str]) -> kopf.OperatorRegistry:
    """kopf is told what to watch by handlers."""
    found = kopf.OperatorRegistry()
    kopf.on.login(registry=found)(_login)
    for kind in kinds:
        where = KINDS[kind]
        watch = kopf.on.event(where.group, where.version, where.plural, id=kind, registry=found)
        watch(_never_called)
    return found


async def _never_called(**_: Any) -> None:
    """kopf watches what it has a handler for. Events go into the store before they reach it."""
    raise AssertionError("an event has reached kopf")


def _login(**context: Any) -> kopf.ConnectionInfo | None:
    if in_cluster():
        return kopf.login_with_service_account(**context)
    return kopf.login_with_kubeconfig(**context)


def kopf_settings() -> kopf.OperatorSettings:
    """How kopf is used here: watches that end before they can fall silent, and nothing of its own in the cluster."""
    settings = kopf.OperatorSettings()
    settings.watching.chunk_size = PAGE  # else a list of ten thousand is in memory as a whole
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = (0.5, 1, 2, 4, 4, 4, 4)
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.peering.clusterwide = True
    settings.scanning.disabled = True  # our kinds are installed before kopf starts, see lists.until_installed
    settings.execution.default_backoff = 1
    settings.queueing.exit_timeout = 1
    settings.process.ultimate_exiting_timeout = None  # else kopf kills the process when it is done with it itself
    for kind in WATCHED:
        where = KINDS[kind]
        if where.selector:
            settings.watching.label_selectors[where.group, where.version, where.plural] = where.selector
    return settings
