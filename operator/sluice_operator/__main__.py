"""The operator's process: everything is put together here, and nowhere else.

`python3 -m sluice_operator` runs until SIGTERM. `python3 -m sluice_operator give-back`, before an uninstall, ends all
training and brings every slot back.
"""

import argparse
import asyncio
import json
import logging
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

from sluice_operator import exposition
from sluice_operator.certificates.keeper import CertificateKeeper
from sluice_operator.clock import Clock
from sluice_operator.cluster.client import Api, connect
from sluice_operator.cluster.cluster import Cluster
from sluice_operator.cluster.leader_label import move_leader_label
from sluice_operator.cluster.lease import Lease
from sluice_operator.cluster.lists import refresh_all, until_installed
from sluice_operator.handlers.kopf_watch import Watches
from sluice_operator.handlers.resync import Resync
from sluice_operator.handlers.routing import every_key, goes_first
from sluice_operator.handlers.watching import route_changes, take_event
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.progress.server import serve as serve_progress
from sluice_operator.reconcile.context import Context, Requeue
from sluice_operator.reconcile.give_back import give_back
from sluice_operator.reconcile.queue import Queue, Reconcile, work
from sluice_operator.reconcile.reconcilers import RECONCILERS
from sluice_operator.reconcile.trust import publish_trust_everywhere
from sluice_operator.scraping import ScrapeAccess
from sluice_operator.settings import Settings

logger = logging.getLogger("sluice_operator")

SILENT_SECONDS = 600
"""A watch that has brought nothing for so long, not even the bookmark of each minute, is dead."""
UNREADY_AFTER = {"watch": 0.3, "requests": 0.1}
"""Of the time after which a replica without eyes is restarted: the part after which it does not call itself ready."""


class Operator:
    """One replica: it watches always, and acts while it leads."""

    def __init__(self, settings: Settings, api: Api) -> None:
        self.settings = settings
        self.api = api
        self.clock = Clock(api.time_of_day)
        self.store = Store(served(settings))
        self.queue = Queue(lambda key: goes_first(self.store.world(), key))
        self.lease = Lease(api, settings.namespace, identity(settings), settings.lease_seconds)
        self.cluster = Cluster(api, self.store, self.lease, settings.pod_name)
        self.context = Context(self.store, self.cluster, settings, self.queue.add)
        self.resync = Resync(api, self.store, settings.resync_seconds, self.queue.add)
        self.watches = Watches(partial(take_event, self.store), self.resync.want)
        route_changes(self.store, self.queue.add, self.context.wakeups.of)

    async def reconcile(self, key: Key) -> Requeue:
        """One step for one object."""
        return await RECONCILERS[key.kind](key, self.context, self.clock.now())

    async def lead(self) -> None:
        """Act, from a fresh view of everything, until cancelled or until a worker finds that this is over."""
        self.store.findings.begin_term(self.lease.term, self.clock.now())
        self.queue.begin()
        await move_leader_label(self.api, self.settings.namespace, self.settings.pod_name, self.lease.check)
        await refresh_all(self.api, self.store)
        for key in sorted(every_key(self.store.world(), self.store.links), key=lambda key: key.kind != "GPUPool"):
            self.queue.add(key)  # pools first: then each job's first status says what it waits for
        # Beside the work: namespaces may be many, and one that answers late is waited for. Pods that run know already.
        telling = asyncio.create_task(publish_trust_everywhere(self.context), name="trust")
        try:
            await work_until_one_ends(self.queue, self.reconcile, self.settings.workers)
        finally:
            await end(telling)

    async def trusted(self, authority: bytes) -> None:
        """Take a look's authority in; pods of all namespaces are told by whoever leads."""
        self.context.authority = authority
        if self.lease.leads:
            await publish_trust_everywhere(self.context)

    def dead(self) -> str:
        """Why this process should be restarted. An event loop that hangs does not even answer."""
        return self._blind(1.0, 1.0)

    def unready(self) -> str:
        """Why this replica could not lead now: it has not seen everything yet, or sees no more."""
        if not self.resync.is_primed:
            return "not every kind has been listed yet"
        return self._blind(UNREADY_AFTER["watch"], UNREADY_AFTER["requests"])

    def _blind(self, watch: float, requests: float) -> str:
        """What it has not heard for longer than these parts of the time that it may: from a watch, to its requests.

        Credentials, and whom to trust, are read once at the start: nothing else than a new start mends some silences.
        """
        silence, unanswered = self.watches.silence(), self.api.silence()
        if unanswered > requests * self.settings.unreachable_seconds:
            return f"no request to the API server has succeeded for {unanswered:.0f} s"
        return f"a watch has been silent for {silence:.0f} s" if silence > watch * SILENT_SECONDS else ""


async def work_until_one_ends(queue: Queue, reconcile: Reconcile, workers: int) -> None:
    """Run the workers. They end together."""
    tasks = [asyncio.create_task(work(queue, reconcile), name=f"worker {number}") for number in range(workers)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end(*tasks)


async def run(settings: Settings) -> None:
    """Run one replica until SIGTERM."""
    client = await connect()
    operator = Operator(settings, Api(client))
    store, lease = operator.store, operator.lease
    keeper = CertificateKeeper(operator.api, settings, operator.clock.now) if settings.by_tls else None
    try:
        if keeper is not None:
            await keeper.first()
            operator.context.authority = keeper.trusted
        tls = keeper.context if keeper else None
        async with serve_progress(
            settings,
            store,
            operator.api,
            operator.cluster,
            lambda: lease.leads,
            operator.queue.add,
            operator.clock.now,
            tls,
        ) as intake:
            access = ScrapeAccess(operator.api) if settings.metrics_access == "Token" else None
            collector = exposition.WorldCollector(store, lambda: lease.leads, lambda: intake.training, operator.queue)
            async with exposition.serve(settings.metrics_port, collector, operator.dead, operator.unready, access, tls):
                await until_installed(operator.api, store)
                await run_until_stopped(operator, keeper)
    finally:
        await client.close()


async def run_until_stopped(operator: Operator, keeper: CertificateKeeper | None) -> None:
    """Watch and stand for election until a signal comes or a part fails. What acts ends first, what watches last."""
    stop = asyncio.Event()
    kopf_stop = asyncio.Event()
    watching = await operator.watches.start(operator.settings.pod_name, kopf_stop, operator.store.watched)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    resyncing = asyncio.create_task(operator.resync.run(), name="resync")
    electing = asyncio.create_task(operator.lease.run(operator.lead), name="lease")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    keeping = [asyncio.create_task(keeper.run(operator.trusted), name="certificate")] if keeper else []
    parts = (electing, resyncing, watching, *keeping)
    await asyncio.wait({*parts, stopping}, return_when=asyncio.FIRST_COMPLETED)
    logger.info("stopping", extra={"why": "signal" if stop.is_set() else "a part has ended"})
    failed = [task for task in parts if task.done()]
    await end(electing, resyncing, stopping, *keeping)
    kopf_stop.set()
    await asyncio.wait({watching})
    for task in failed:
        task.result()
        raise RuntimeError(f"{task.get_name()} has ended")


async def run_give_back(settings: Settings) -> None:
    """Before an uninstall."""
    client = await connect()
    try:
        api = Api(client)
        store = Store(served(settings))
        lease = Lease(api, settings.namespace, identity(settings), settings.lease_seconds)
        await give_back(api, Context(store, Cluster(api, store, lease, settings.pod_name), settings), lease)
    finally:
        await client.close()


async def end(*tasks: asyncio.Task[object]) -> None:
    """Cancel, and wait until it is so."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def served(settings: Settings) -> Callable[[str], bool]:
    """Whether the custom resources of a namespace are ours."""
    return lambda namespace: not settings.watch_namespaces or namespace in settings.watch_namespaces


def identity(settings: Settings) -> str:
    """Name of this very process as a candidate."""
    return f"{settings.pod_name}_{uuid4().hex[:8]}"


class JsonLines(logging.Formatter):
    """One event a line, with its fields."""

    ordinary = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in self.ordinary}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json() -> None:
    """To stdout; of kopf only what someone should act on."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="sluice_operator", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "give-back"), default="run")
    command = parser.parse_args().command
    log_as_json()
    settings = Settings.from_environment()
    asyncio.run(run_give_back(settings) if command == "give-back" else run(settings))


if __name__ == "__main__":
    main()
