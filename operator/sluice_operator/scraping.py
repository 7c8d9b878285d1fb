"""Who may read /metrics, and how often it is worked out: jobs' names and losses are not for everybody.

A scraper sends its ServiceAccount's token, as for any component of Kubernetes. TokenReview says whose it is, and
SubjectAccessReview whether that one may `get` the path /metrics.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from aiohttp import hdrs, web
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from sluice_operator.cluster.client import Api, Body
from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.kinds import KINDS
from sluice_operator.progress.limits import Buckets
from sluice_operator.progress.refusal import Refused
from sluice_operator.progress.tokens import bearer

PATH = "/metrics"
FRESH_SECONDS = 1.0
"""A page is worked out once in so long, however many ask for it: it reads every job, beside the leader's decisions."""
BELIEVED_SECONDS = 60.0
"""How long an answer about a token holds without another review."""
OUTAGE_SECONDS = 600.0
"""How long who could read the metrics may go on while the API server answers no review: then they are needed most."""
REVIEW_SECONDS = 3.0
"""How long a review may take. Prometheus waits ten seconds for the page."""
MOST_KEPT = 1_000
REVIEWS_PER_SECOND = 5.0
REVIEWS_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class _Answer:
    allowed: bool
    until: float


class ScrapeAccess:
    """Asks the API server whether a token may read the metrics."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._known: OrderedDict[bytes, _Answer] = OrderedDict()
        self._reviews = Buckets(REVIEWS_PER_SECOND, REVIEWS_AT_ONCE, clock)

    async def check(self, request: web.Request) -> None:
        """Let a request pass.

        Raises:
            HTTPUnauthorized: it has no token.
            HTTPForbidden: the token does not hold, or may not get /metrics.
            HTTPTooManyRequests: too many tokens that nobody knows came from this address.
            HTTPServiceUnavailable: the API server answers no review now.
        """
        try:
            token = bearer(request.headers.get(hdrs.AUTHORIZATION))
        except Refused as refused:
            raise web.HTTPUnauthorized(text=refused.message, headers={hdrs.WWW_AUTHENTICATE: "Bearer"}) from None
        digest, now = sha256(token.encode()).digest(), self._clock()
        known = self._known.get(digest)
        if known is None or known.until <= now:
            if wait := self._reviews.take(request.remote or ""):
                raise web.HTTPTooManyRequests(headers={hdrs.RETRY_AFTER: str(wait)})
            try:
                known = _Answer(await self._review(token), now + BELIEVED_SECONDS)
            except ApiError as error:
                if known is None or not known.allowed or now > known.until - BELIEVED_SECONDS + OUTAGE_SECONDS:
                    raise web.HTTPServiceUnavailable(text=f"the API server reviews no token now: {error}") from None
            else:
                self._remember(digest, known)
        if not known.allowed:
            raise web.HTTPForbidden(
                text="this token may not get the path /metrics: bind its ServiceAccount to the ClusterRole "
                "sluice-metrics-reader"
            )

    async def _review(self, token: str) -> bool:
        status = await self._ask("TokenReview", {"token": token})
        user = status.get("user") or {}
        if not status.get("authenticated") or not user.get("username"):
            return False
        asks = {
            "user": user["username"],
            "groups": user.get("groups") or [],
            "uid": user.get("uid", ""),
            "extra": user.get("extra") or {},
            "nonResourceAttributes": {"path": PATH, "verb": "get"},
        }
        return bool((await self._ask("SubjectAccessReview", asks)).get("allowed"))

    async def _ask(self, kind: str, spec: Body) -> Body:
        where = KINDS[kind]
        review = {"apiVersion": where.api_version, "kind": kind, "spec": spec}
        answer = await self._api.request(
            "POST", where.collection(), body=review, patience=lambda: REVIEW_SECONDS, attempts=1
        )
        return dict(answer.get("status") or {})

    def _remember(self, digest: bytes, answer: _Answer) -> None:
        self._known.pop(digest, None)
        self._known[digest] = answer
        while len(self._known) > MOST_KEPT:
            self._known.popitem(last=False)


class Pages:
    """The pages of a registry, each worked out at most once a second in each format."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._clock = clock
        self._made: dict[str, tuple[float, bytes]] = {}

    def page(self, accept: str) -> tuple[str, bytes]:
        """Content type and body for an Accept header."""
        encode, content_type = choose_encoder(accept)
        made_at, body = self._made.get(content_type, (-FRESH_SECONDS, b""))
        now = self._clock()
        if not body or now - made_at >= FRESH_SECONDS:
            body = encode(self._registry)
            self._made[content_type] = (now, body)
        return content_type, body
