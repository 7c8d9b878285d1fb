"""The endpoint to which trainers and engine agents post their reports."""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime

from aiohttp import hdrs, web

from sluice_api.finetunejob import FineTuneJob, Progress
from sluice_api.reports import (
    ENGINE_REPORTS_PATH,
    MAX_REPORT_BYTES,
    TRAINING_REPORTS_PATH,
    EngineReport,
    TrainingReport,
)
from sluice_operator import metrics
from sluice_operator.cluster.client import Api
from sluice_operator.cluster.writes import Writer
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key, PodView
from sluice_operator.observe.world import key_of
from sluice_operator.progress.connections import answering
from sluice_operator.progress.identity import replica_of, trainer_of
from sluice_operator.progress.intake import Intake
from sluice_operator.progress.limits import Buckets
from sluice_operator.progress.lookup import Lookup
from sluice_operator.progress.parse import parse
from sluice_operator.progress.refusal import Refusal, Refused
from sluice_operator.progress.tokens import BoundPod, TokenReviews
from sluice_operator.progress.writer import ProgressWriter
from sluice_operator.settings import Settings

REPORTS_PER_SECOND = 2.0
REPORTS_AT_ONCE = 10
"""For each pod. A trainer posts once a second, and at once what is worth it: a checkpoint, another activity."""
BODY_SECONDS = 10
"""A body that takes longer does not come."""
FORGET_EVERY_SECONDS = 60

REPORTS_AT = {TRAINING_REPORTS_PATH: "training", ENGINE_REPORTS_PATH: "engine"}

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serve(
    settings: Settings,
    store: Store,
    api: Api,
    cluster: Writer,
    leads: Callable[[], bool],
    wake: Callable[[Key], None],
    now: Callable[[], datetime],
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Intake]:
    """Take reports on the progress port until the block ends, on every replica: who does not lead answers 503.

    Args:
        wake: puts an object's key into the queue.
        now: the operator's clock; reports have none of their own.
        tls: with which certificate; without it reports come by plain HTTP.
    """

    async def write(job: FineTuneJob, progress: Progress) -> None:
        known = progress.model_dump(mode="json", by_alias=True, exclude_none=True)
        await cluster.apply_progress(key_of(job), job.metadata.uid, known)

    writer = ProgressWriter(write, leads, now)
    intake = Intake(store, writer, wake)

    def known(pod: BoundPod) -> bool:
        seen = store.world().pods.get(Key("Pod", pod.namespace, pod.name))
        return seen is not None and seen.uid == pod.uid

    endpoint = Endpoint(store, TokenReviews(api, known), Lookup(store, api), intake, leads, now)
    async with writer.running(), asyncio.TaskGroup() as group:
        forgetting = group.create_task(_forget_gone(intake))
        async with answering(endpoint.app(), settings.progress_port, tls):
            yield intake
        forgetting.cancel()


class Endpoint:
    """From a request to an accepted report: leader, poster, pace, body, owner, order. The cheap checks come first."""

    def __init__(
        self,
        store: Store,
        reviews: TokenReviews,
        lookup: Lookup,
        intake: Intake,
        leads: Callable[[], bool],
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._reviews = reviews
        self._lookup = lookup
        self._intake = intake
        self._leads = leads
        self._now = now
        self._buckets = Buckets(REPORTS_PER_SECOND, REPORTS_AT_ONCE, time.monotonic)

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=MAX_REPORT_BYTES, middlewares=[answered])
        app.router.add_post(TRAINING_REPORTS_PATH, self._training)
        app.router.add_post(ENGINE_REPORTS_PATH, self._engine)
        return app

    async def _training(self, request: web.Request) -> web.Response:
        try:
            pod = await self._poster(request)
        except TooOften as refused:
            self._hear(refused.pod)
            raise
        report = parse(TrainingReport, await body(request))
        trainer = trainer_of(self._store.world(), pod)
        self._intake.take_training(trainer, report, self._now())
        return web.Response(status=202)

    async def _engine(self, request: web.Request) -> web.Response:
        pod = await self._poster(request)
        report = parse(EngineReport, await body(request))
        deployment = await self._lookup.deployment_of(pod)
        replica = replica_of(self._store.world(), pod, deployment)
        self._intake.take_engine(replica, report, self._now())
        return web.Response(status=202)

    def _hear(self, bound: BoundPod) -> None:
        """One whose token somebody else floods us with is alive, though it is not its turn."""
        world = self._store.world()
        pod = world.pods.get(Key("Pod", bound.namespace, bound.name))
        if pod is not None and pod.uid == bound.uid:
            self._intake.hear(trainer_of(world, pod), self._now())

    async def _poster(self, request: web.Request) -> PodView:
        """The pod that posts, if it may now.

        Raises:
            Refused: this replica does not lead, the token does not hold, or the pod posts too often.
        """
        if not self._leads():
            raise Refused(Refusal.NOT_LEADING, "this replica does not lead; try again", retry_after=1)
        if (request.content_length or 0) > MAX_REPORT_BYTES:
            raise Refused(Refusal.TOO_LARGE, f"a report has at most {MAX_REPORT_BYTES} bytes")
        authorization = request.headers.get(hdrs.AUTHORIZATION)
        bound = await self._reviews.pod_of(authorization, request.remote or "")
        if wait := self._buckets.take(bound.uid):
            raise TooOften(bound, wait)
        try:
            pod = await self._lookup.pod(bound)
        except Refused:
            self._reviews.forget(authorization)
            raise
        if pod.deleting:
            self._reviews.forget(authorization)
        return pod


class TooOften(Refused):
    """A pod posts more than it may."""

    def __init__(self, pod: BoundPod, wait: int) -> None:
        """It may again in `wait` seconds."""
        super().__init__(Refusal.RATE_LIMITED, "this pod posts too often", retry_after=wait)
        self.pod = pod


async def body(request: web.Request) -> bytes:
    """The request's body.

    Raises:
        Refused: it is too large, packed, or does not come.
    """
    if hdrs.CONTENT_ENCODING in request.headers:
        raise Refused(Refusal.MALFORMED, "send the JSON as it is, without Content-Encoding")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refused(Refusal.TOO_LARGE, f"a report has at most {MAX_REPORT_BYTES} bytes") from None
    except TimeoutError:
        raise Refused(Refusal.MALFORMED, f"the body did not come within {BODY_SECONDS} s") from None


@web.middleware
async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count every answer, and turn every failure into one: the one place in this process part that does."""
    kind = REPORTS_AT.get(request.path, "other")
    try:
        response = await handler(request)
    except Refused as refused:
        metrics.PROGRESS_REPORTS.labels(kind, refused.refusal.value).inc()
        return refusal_response(refused)
    except web.HTTPException:
        raise
    except ConnectionError:  # it has hung up: nobody reads the answer, and nothing is wrong here
        metrics.PROGRESS_REPORTS.labels(kind, "hung_up").inc()
        return web.Response(status=499)
    except Exception:
        log.exception("report failed", extra={"path": request.path})
        metrics.PROGRESS_REPORTS.labels(kind, "error").inc()
        return web.json_response({"error": "error", "message": "the operator failed; its log says why"}, status=500)
    metrics.PROGRESS_REPORTS.labels(kind, "accepted").inc()
    return response


def refusal_response(refused: Refused) -> web.Response:
    """What the poster reads."""
    headers = {} if refused.retry_after is None else {hdrs.RETRY_AFTER: str(refused.retry_after)}
    if refused.refusal.status == web.HTTPUnauthorized.status_code:
        headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    return web.json_response(
        {"error": refused.refusal.value, "message": refused.message}, status=refused.refusal.status, headers=headers
    )


async def _forget_gone(intake: Intake) -> None:
    while True:
        await asyncio.sleep(FORGET_EVERY_SECONDS)
        intake.forget_gone()
