"""What a scrape of /metrics answers: what metrics.py has counted, and what the World shows at that moment.

Series that come from the World can't outlive their objects. Only the leader shows them: a standby's are its own guess.
A job's labels are job_namespace and job_name: Prometheus sets namespace and job itself, to the operator's.
"""

import ssl
from collections import Counter as Tally
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

from aiohttp import hdrs, web
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool, GPUPoolStatus
from sluice_api.inferenceengine import AWAKE, SlotState
from sluice_api.meta import DEFAULT_POOL
from sluice_api.reasons import Reason
from sluice_api.reports import TrainingReport
from sluice_api.stages import Stage
from sluice_operator import metrics
from sluice_operator.facts.claims import trainer_pods
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.fence import fenced
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, identity, job_key, key_of
from sluice_operator.progress.connections import answering
from sluice_operator.scraping import PATH, Pages, ScrapeAccess
from sluice_operator.status.pool import pool_usage

SHOWN_AFTER_END = timedelta(minutes=10)
"""How long a finished job's last figures stay, for a scrape to see them."""

Training = Callable[[], Mapping[str, TrainingReport]]
"""The newest report of each job's training, by the job's uid."""

FOR_GPUS = frozenset({Reason.WAITING_FOR_GPUS, Reason.BEHIND_IN_QUEUE, Reason.ENGINE_AT_FLOOR})
"""For what a job waits that lacks nothing but GPUs."""

NOT_SERVING = frozenset(SlotState) - AWAKE - {SlotState.WAITING}
"""States of a replica that a job borrows, from its draining to its return."""


class Work(Protocol):
    """What is to be done: the queue."""

    def failing(self) -> Iterable[Key]:
        """Objects whose last attempt has failed."""

    def waiting(self) -> Iterable[tuple[Key, float]]:
        """Objects that are to be looked at, each with the seconds since that was asked for first."""


class WorldCollector:
    """Reads jobs, GPUs and trainings from the store at each scrape."""

    def __init__(self, store: Store, leads: Callable[[], bool], training: Training, work: Work) -> None:
        self._store = store
        self._leads = leads
        self._training = training
        self._work = work

    def describe(self) -> list[Metric]:
        """Nothing in advance: registering does not read the store."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All series of this moment."""
        leads = self._leads()
        yield GaugeMetricFamily("sluice_leader", "1 on the replica that leads.", value=float(leads))
        if leads:
            world = self._store.world()
            yield jobs(world)
            yield longest_waits(world, datetime.now(UTC))
            yield set_aside(world)
            yield from gpus(world)
            yield failing(self._work)
            yield unreadable(self._store)
            yield undecided(world, self._work)
            yield idle_loans(world)
            yield from trainings(world, self._training(), datetime.now(UTC))


def jobs(world: World) -> Metric:
    """Jobs by state."""
    family = GaugeMetricFamily(
        "sluice_jobs", "FineTuneJobs by state, a word of docs/reasons.md.", labels=("job_namespace", "state")
    )
    tally = Tally((job.metadata.namespace, job.status.summary or Reason.PENDING.value) for job in world.jobs.values())
    for place, count in tally.items():
        family.add_metric(place, count)
    return family


def longest_waits(world: World, now: datetime) -> Metric:
    """How long the job that waits for longest has waited, by namespace: a queue is never empty where it moves on."""
    family = GaugeMetricFamily(
        "sluice_longest_wait_seconds",
        "Since the first of the jobs that wait for GPUs could have had some.",
        labels=("job_namespace",),
    )
    longest: dict[str, float] = {}
    for job in world.jobs.values():
        place, namespace = job.status.queue, job.metadata.namespace
        if place and place.since and job.status.summary in FOR_GPUS:
            longest[namespace] = max(longest.get(namespace, 0.0), (now - place.since).total_seconds())
    for namespace, seconds in longest.items():
        family.add_metric((namespace,), seconds)
    return family


def set_aside(world: World) -> Metric:
    """Objects that nothing is decided for, by kind; of a kind that has none, 0."""
    family = GaugeMetricFamily(
        "sluice_objects_set_aside",
        "Objects that are left alone: looking at them raised an exception.",
        labels=("kind",),
    )
    tally = Tally(key.kind for key in world.set_aside)
    for kind in ("FineTuneJob", "InferenceEngine", "Adapter", "GPUPool", "Node"):
        family.add_metric((kind,), tally[kind])
    return family


def gpus(world: World) -> Iterator[Metric]:
    """GPUs by pool and use."""
    used = GaugeMetricFamily("sluice_gpus", "GPUs by use: inference, training, others or free.", labels=("pool", "use"))
    lent = GaugeMetricFamily("sluice_lent_gpus", "GPUs that engines lend to jobs.", labels=("pool",))
    default = find_pool(world, DEFAULT_POOL)
    for pool in world.pools.values() or filter(None, (default,)):
        name, usage = pool.metadata.name, fenced(world, key_of(pool), partial(_usage, pool)).decision
        if usage is None:
            continue
        used.add_metric((name, "inference"), usage.inference)
        used.add_metric((name, "training"), usage.training)
        used.add_metric((name, "others"), usage.others)
        used.add_metric((name, "free"), usage.free)
        lent.add_metric((name,), usage.lent)
    yield used
    yield lent


def failing(work: Work) -> Metric:
    """Objects that fail, by kind: one is enough for an alert, however seldom it is tried."""
    family = GaugeMetricFamily(
        "sluice_failing_objects", "Objects whose last reconcile has failed; it is tried again.", labels=("kind",)
    )
    for kind, count in Tally(key.kind for key in work.failing()).items():
        family.add_metric((kind,), count)
    return family


def unreadable(store: Store) -> Metric:
    """Objects that are not understood, by kind."""
    family = GaugeMetricFamily(
        "sluice_unreadable_objects", "Objects that cannot be read and are left alone.", labels=("kind",)
    )
    for kind, count in Tally(obj.key.kind for obj in store.unreadable()).items():
        family.add_metric((kind,), count)
    return family


def undecided(world: World, work: Work) -> Metric:
    """For how long each pool has waited for a decision."""
    family = GaugeMetricFamily(
        "sluice_pool_undecided_seconds",
        "Since something changed in the pool after its last decision; 0 if nothing has.",
        labels=("pool",),
    )
    waiting = {key.name: seconds for key, seconds in work.waiting() if key.kind == "GPUPool"}
    for name in dict.fromkeys((*(key.name for key in world.pools), *waiting)):
        family.add_metric((name,), waiting.get(name, 0))
    return family


def idle_loans(world: World) -> Metric:
    """Lent replicas on whose GPUs nothing trains, of each engine that lends now."""
    family = GaugeMetricFamily(
        "sluice_idle_loans",
        "Lent replicas of which no trainer of the borrowing job runs.",
        labels=("engine_namespace", "engine_name"),
    )
    for engine in world.engines.values():
        borrowers = [slot.lent_to for slot in engine.status.slots if slot.state in NOT_SERVING]
        if borrowers:
            idle = sum(1 for name in borrowers if not _trains(world, name))
            family.add_metric((engine.metadata.namespace, engine.metadata.name), idle)
    return family


def _trains(world: World, name: str) -> bool:
    """Whether a trainer runs of the job that is called namespace/name."""
    job = world.jobs.get(job_key(*name.split("/", 1))) if "/" in name else None
    stage_jobs = world.stage_jobs_of.get(identity(job), {}).values() if job else ()
    pods = (pod for found in stage_jobs if found.stage is Stage.TRAIN for pod in trainer_pods(world, found))
    return any(pod.running and not pod.ended and not pod.deleting for pod in pods)


def _usage(pool: GPUPool, world: World) -> GPUPoolStatus:
    return pool_usage(world, pool)


FIGURES: tuple[tuple[str, str, Callable[[TrainingReport], float | None]], ...] = (
    ("sluice_training_step", "Optimizer steps done, over all attempts.", lambda report: report.step),
    ("sluice_training_target_steps", "Optimizer steps of the whole job.", lambda report: report.total_steps),
    ("sluice_training_epoch", "Passes over the training rows.", lambda report: report.epoch),
    ("sluice_training_loss_nats", "Mean training loss since the last report.", lambda report: report.loss),
    (
        "sluice_training_evaluation_loss_nats",
        "Newest mean loss on the held-out rows.",
        lambda report: report.evaluation_loss,
    ),
    ("sluice_training_learning_rate", "Of the last step.", lambda report: report.learning_rate),
    ("sluice_training_gradient_norm", "Of the last step, before clipping.", lambda report: report.gradient_norm),
    ("sluice_training_tokens_per_second", "Real tokens.", lambda report: report.tokens_per_second),
    ("sluice_training_gpu_memory_bytes", "Peak of this attempt.", lambda report: report.gpu_memory_bytes),
    ("sluice_training_memory_bytes", "Peak of this attempt on the host.", lambda report: report.memory_bytes),
    ("sluice_training_seconds_left", "The trainer's estimate.", lambda report: report.seconds_left),
)


def trainings(world: World, newest: Mapping[str, TrainingReport], now: datetime) -> Iterator[Metric]:
    """The newest figures of each job that trains, or has ended a moment ago."""
    shown = [
        (job, newest[job.metadata.uid])
        for job in world.jobs.values()
        if job.metadata.uid in newest and not _is_long_over(job, now)
    ]
    for name, meaning, figure in FIGURES:
        family = GaugeMetricFamily(name, meaning, labels=("job_namespace", "job_name"))
        for job, report in shown:
            value = figure(report)
            if value is not None:
                family.add_metric((job.metadata.namespace, job.metadata.name), value)
        yield family


def _is_long_over(job: FineTuneJob, now: datetime) -> bool:
    finished = job.status.finished_at
    return finished is not None and now - finished > SHOWN_AFTER_END


@asynccontextmanager
async def serve(
    port: int,
    collector: WorldCollector,
    live: Callable[[], str],
    ready: Callable[[], str],
    access: ScrapeAccess | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[None]:
    """Answer /metrics, /livez and /readyz until the block ends, on the leader and on a standby.

    Args:
        live: says what is wrong; nothing when nothing is.
        ready: the same.
        access: who may read /metrics; everybody without it.
        tls: with which certificate; plain HTTP without it.
    """
    metrics.REGISTRY.register(collector)
    app = web.Application()
    app.router.add_get(PATH, _scraped(Pages(metrics.REGISTRY), access))
    app.router.add_get("/livez", _probe(live))
    app.router.add_get("/readyz", _probe(ready))
    try:
        async with answering(app, port, tls):
            yield
    finally:
        metrics.REGISTRY.unregister(collector)


def _scraped(pages: Pages, access: ScrapeAccess | None) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def scraped(request: web.Request) -> web.Response:
        if access is not None:
            await access.check(request)
        content_type, body = pages.page(",".join(request.headers.getall(hdrs.ACCEPT, [])))
        response = web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})
        response.enable_compression()
        return response

    return scraped


def _probe(wrong: Callable[[], str]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def probe(_request: web.Request) -> web.Response:
        reason = wrong()
        return web.Response(text=reason or "ok", status=503 if reason else 200)

    return probe
