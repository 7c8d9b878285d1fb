"""kopf watches every kind that decisions read. An event does two things: the store learns, the queue is told whom."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import kopf
from kopf._core.engines.peering import Identity

from sluice_operator.cluster.client import in_cluster
from sluice_operator.cluster.kinds import KINDS
from sluice_operator.cluster.lists import PAGE
from sluice_operator.handlers.resync import KIND_OF
from sluice_operator.handlers.routing import keys_for
from sluice_operator.observe.parse import KINDS as WATCHED
from sluice_operator.observe.parse import Stored, Unreadable, key_of, parse, uid_of, version_of
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key


def route_changes(store: Store, add: Callable[[Key], None]) -> None:
    """Have every change of the store, wherever it comes from, reconcile those whom it concerns."""

    def changed(old: Stored | None, new: Stored | None) -> None:
        for key in keys_for(old, new, store.world(), store.links):
            add(key)

    store.listen(changed)


def take_event(store: Store, plural: str, event: kopf.RawEvent) -> None:
    """Bring one event of a watch, or one object of kopf's own list, into the store."""
    parsed = parse(KIND_OF[plural], dict(event["object"]))
    if event["type"] == "DELETED":
        if not isinstance(parsed, Unreadable):
            store.put(parsed, seen=True)  # the last words of a pod may come only with its end
        store.remove(key_of(parsed), uid_of(parsed), version_of(parsed))
    else:
        store.put(parsed, seen=True)


async def start_watching(name: str, stop: asyncio.Event, kinds: Iterable[str] = WATCHED) -> asyncio.Task[None]:
    """Start kopf in this event loop; the task ends when `stop` is set, or with the failure that ends kopf.

    kopf takes over the signal handlers of SIGTERM and SIGINT: set your own afterwards.
    """
    tasks = await kopf.spawn_tasks(
        registry=registry(kinds),
        settings=kopf_settings(),
        identity=Identity(name),  # kopf would ask for our user's name, which a uid may not have
        standalone=True,
        clusterwide=True,
        stop_flag=stop,
    )
    return asyncio.create_task(kopf.run_tasks(tasks, ignored=_Everything()), name="kopf")


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
    """kopf watches what it has a handler for. Events do not come so far, see `watcher.Watches`."""
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
