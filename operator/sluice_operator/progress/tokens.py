"""Whose token it is: TokenReview by the API server, remembered for a short while.

Only TokenReview checks that the pod which a token is bound to still exists, so no token is believed for longer
than TTL without one (reference/kubernetes-notes.md, token audiences).
"""

import base64
import binascii
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sluice_api.pods import TOKEN_AUDIENCE
from sluice_operator.clock import passing
from sluice_operator.cluster.client import Api, Body
from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.kinds import KINDS
from sluice_operator.progress.limits import Buckets
from sluice_operator.progress.refusal import Refusal, Refused

TTL = 60.0
"""Seconds that an accepted token is believed without another review."""
REFUSED_TTL = 5.0
"""Seconds that a refused one is refused without another review."""
MOST_ACCEPTED = 20_000
MOST_REFUSED = 1_000
MAX_TOKEN = 8192
GUESSES_PER_SECOND = 5.0
GUESSES_AT_ONCE = 20
"""Refused tokens of one guesser, and reviews under way: the API server need not review all that somebody guesses."""

_USER = "system:serviceaccount:"
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"


@dataclass(frozen=True, slots=True)
class BoundPod:
    """The pod that a token is bound to."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class _Reviewed:
    pod: BoundPod | Refused
    until: float


class TokenReviews:
    """Asks the API server whose token it is."""

    def __init__(
        self,
        api: Api,
        known: Callable[[BoundPod], bool],
        clock: Callable[[], float] = passing,
        time_of_day: Callable[[], float] = time.time,
    ) -> None:
        """`known` says whether a pod is one that is seen; a token's own expiry is compared with `time_of_day`."""
        self._api = api
        self._known = known
        self._clock = clock
        self._time_of_day = time_of_day
        self._guesses = Buckets(GUESSES_PER_SECOND, GUESSES_AT_ONCE, clock)
        self._accepted: OrderedDict[bytes, _Reviewed] = OrderedDict()
        self._refused: OrderedDict[bytes, _Reviewed] = OrderedDict()

    async def pod_of(self, authorization: str | None, address: str) -> BoundPod:
        """The pod whose token the Authorization header has.

        Raises:
            Refused: there is no token, it does not hold, or it is bound to no pod.
        """
        token = bearer(authorization)
        digest = sha256(token.encode()).digest()
        known = self._accepted.get(digest) or self._refused.get(digest)
        if known is None or known.until <= self._clock():
            guesser = "" if digest in self._accepted else self._guesser(token, address)
            if guesser and (wait := self._guesses.take(guesser)):
                raise Refused(Refusal.RATE_LIMITED, "too many unknown tokens from this address", retry_after=wait)
            known = await self._review(token)
            if isinstance(known.pod, BoundPod):
                self._guesses.give_back(guesser)
            self._remember(digest, known)
        if isinstance(known.pod, Refused):
            raise known.pod.with_traceback(None)
        return known.pod

    def forget(self, authorization: str | None) -> None:
        """Have this token reviewed again at its next use: its pod is going."""
        self._accepted.pop(sha256(bearer(authorization).encode()).digest(), None)

    def _guesser(self, token: str, address: str) -> str:
        """On whose account a token is tried: on that of the pod which it names, if there is one, at this address.

        A mesh or a NAT puts many pods behind one address, and one that guesses must not silence the others. Names of
        pods that are not there are all on the account of the address itself, or a guesser would have as many accounts
        as it likes.
        """
        pod = claimed_pod(unverified_claims(token))
        return f"{address} {pod.uid}" if pod and self._known(pod) else address

    async def _review(self, token: str) -> _Reviewed:
        where = KINDS["TokenReview"]
        spec = {"token": token, "audiences": [TOKEN_AUDIENCE]}
        review = {"apiVersion": where.api_version, "kind": "TokenReview", "spec": spec}
        try:
            answer = await self._api.request("POST", where.collection(), body=review, attempts=1)
        except ApiError as error:
            raise Refused(
                Refusal.UNAVAILABLE, "the API server reviews no token now; try again", retry_after=2
            ) from error
        claims, now, time_of_day = unverified_claims(token), self._clock(), self._time_of_day()
        try:
            pod = bound_pod(answer.get("status") or {})
        except Refused as refused:
            return _Reviewed(explained(refused, claims, time_of_day), now + REFUSED_TTL)
        expiry = claims.get("exp")
        left = expiry - time_of_day if isinstance(expiry, int | float) else TTL
        return _Reviewed(pod, now + min(TTL, left))

    def _remember(self, digest: bytes, known: _Reviewed) -> None:
        """Keep an answer; the oldest make room."""
        self._accepted.pop(digest, None)
        self._refused.pop(digest, None)
        kept, most = (
            (self._refused, MOST_REFUSED) if isinstance(known.pod, Refused) else (self._accepted, MOST_ACCEPTED)
        )
        kept[digest] = known
        while len(kept) > most:
            kept.popitem(last=False)


def bearer(authorization: str | None) -> str:
    """The token of an Authorization header.

    Raises:
        Refused: there is none. "Bearer" alone is none (Argo CVE-2026-28229 believed "Bearer nothing").
    """
    scheme, _, token = (authorization or "").strip().partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Refused(Refusal.NO_TOKEN, "send the token of your ServiceAccount: Authorization: Bearer <token>")
    if len(token) > MAX_TOKEN or token.count(".") != 2 or not token.isascii():
        raise Refused(Refusal.INVALID_TOKEN, "this is no service account token")
    return token


def bound_pod(status: Body) -> BoundPod:
    """The pod of a TokenReview's status, if it holds for our audience.

    Raises:
        Refused: the token does not hold, or is bound to no pod.
    """
    if not status.get("authenticated") or TOKEN_AUDIENCE not in (status.get("audiences") or ()):
        raise Refused(Refusal.INVALID_TOKEN, "the API server does not know this token, or its pod is gone")
    user = status.get("user") or {}
    username, extra = user.get("username") or "", user.get("extra") or {}
    namespace, _, account = username.removeprefix(_USER).partition(":")
    names, uids = extra.get(_POD_NAME) or [], extra.get(_POD_UID) or []
    if not (username.startswith(_USER) and account and len(names) == len(uids) == 1):
        raise Refused(Refusal.UNBOUND_TOKEN, f"the token is bound to no pod; mount one for audience {TOKEN_AUDIENCE}")
    return BoundPod(namespace, names[0], uids[0])


def explained(refused: Refused, claims: dict[str, Any], now: float) -> Refused:
    """The same refusal with what the token says of itself. It decides nothing: nobody vouches for these claims."""
    if refused.refusal is not Refusal.INVALID_TOKEN:
        return refused
    audiences, expiry = claims.get("aud"), claims.get("exp")
    if isinstance(audiences, list) and TOKEN_AUDIENCE not in audiences:
        return Refused(Refusal.WRONG_AUDIENCE, f"the token is not for audience {TOKEN_AUDIENCE}")
    if isinstance(expiry, int | float) and expiry <= now:
        return Refused(Refusal.EXPIRED_TOKEN, "the token has expired; read its file again before each post")
    return refused


def claimed_pod(claims: dict[str, Any]) -> BoundPod | None:
    """The pod to which a token says that it is bound; nobody vouches for it."""
    match claims.get("kubernetes.io"):
        case {"namespace": str(namespace), "pod": {"name": str(name), "uid": str(uid)}}:
            return BoundPod(namespace, name, uid)
    return None


def unverified_claims(token: str) -> dict[str, Any]:
    """What a token says of itself; nothing where it can't be read."""
    part = token.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}
