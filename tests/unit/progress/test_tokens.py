"""Whose token it is: how answers of the API server are read, and for how long they are believed."""

import base64
import json
from typing import Any

import pytest

from sluice_operator.cluster.client import Api, Body
from sluice_operator.cluster.errors import ApiError
from sluice_operator.progress.refusal import Refusal, Refused
from sluice_operator.progress.tokens import (
    GUESSES_AT_ONCE,
    REFUSED_TTL,
    TTL,
    BoundPod,
    TokenReviews,
    bearer,
    bound_pod,
    claimed_pod,
)

POD = "authentication.kubernetes.io/pod-"
EXTRA = {f"{POD}name": ["trainer-0"], f"{POD}uid": ["uid-0"]}
USER = "system:serviceaccount:team:default"


def token(**claims: Any) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"head.{payload}.signature"


def status(**changes: Any) -> Body:
    user = {"username": changes.pop("username", USER), "extra": changes.pop("extra", EXTRA)}
    return {"authenticated": True, "audiences": ["sluice"], "user": user, **changes}


class ApiServer(Api):
    """Answers reviews, and counts them."""

    def __init__(self, answer: Body | Exception) -> None:
        self.answer = answer
        self.asked = 0

    async def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> Body:
        self.asked += 1
        assert (method, path) == ("POST", "/apis/authentication.k8s.io/v1/tokenreviews")
        assert body["spec"]["audiences"] == ["sluice"]
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"status": self.answer}


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def reviews(server: ApiServer, clock: Clock, *known: str) -> TokenReviews:
    """Reviews in a cluster in which pods of these uids are seen."""
    return TokenReviews(server, lambda pod: pod.uid in known, clock, clock)


def bound_to(uid: str, **claims: Any) -> str:
    """The header with a token that says it is bound to a pod."""
    pod = {"namespace": "team", "pod": {"name": uid, "uid": uid}}
    return f"Bearer {token(**{'kubernetes.io': pod}, **claims)}"


@pytest.mark.parametrize("header", [f"Bearer {token()}", f"bearer {token()}", f"BEARER  {token()} "])
def test_bearer_scheme_has_no_case(header: str) -> None:
    assert bearer(header) == token()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, Refusal.NO_TOKEN),
        ("", Refusal.NO_TOKEN),
        ("Bearer", Refusal.NO_TOKEN),
        ("Bearer ", Refusal.NO_TOKEN),
        (token(), Refusal.NO_TOKEN),
        (f"Basic {token()}", Refusal.NO_TOKEN),
        ("Bearer nothing", Refusal.INVALID_TOKEN),
        (f"Bearer {token()} {token()}", Refusal.INVALID_TOKEN),
        (f"Bearer {'x' * 9000}..", Refusal.INVALID_TOKEN),
        ("Bearer é.é.é", Refusal.INVALID_TOKEN),
    ],
)
def test_header_without_a_bearer_token_is_no_token(header: str | None, expected: Refusal) -> None:
    with pytest.raises(Refused) as refused:
        bearer(header)
    assert refused.value.refusal is expected


def test_a_bound_token_names_its_pod() -> None:
    assert bound_pod(status()) == BoundPod("team", "trainer-0", "uid-0")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({}, Refusal.INVALID_TOKEN),
        (status(authenticated=False), Refusal.INVALID_TOKEN),
        (status(audiences=None), Refusal.INVALID_TOKEN),
        (status(audiences=["https://kubernetes.default.svc"]), Refusal.INVALID_TOKEN),
        (status(extra=None), Refusal.UNBOUND_TOKEN),
        (status(extra={}), Refusal.UNBOUND_TOKEN),
        (status(extra={f"{POD}name": ["a"]}), Refusal.UNBOUND_TOKEN),
        (status(extra={f"{POD}name": ["a", "b"], f"{POD}uid": ["1", "2"]}), Refusal.UNBOUND_TOKEN),
        (status(user=None), Refusal.UNBOUND_TOKEN),
        (status(username="alice"), Refusal.UNBOUND_TOKEN),
        (status(username="system:serviceaccount:team"), Refusal.UNBOUND_TOKEN),
    ],
)
def test_token_review_without_a_bound_pod_is_refused(answer: Body, expected: Refusal) -> None:
    with pytest.raises(Refused) as refused:
        bound_pod(answer)
    assert refused.value.refusal is expected


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"aud": ["vault"]}, Refusal.WRONG_AUDIENCE),
        ({"aud": ["sluice"], "exp": 1}, Refusal.EXPIRED_TOKEN),
        ({"aud": ["sluice"], "exp": 9e9}, Refusal.INVALID_TOKEN),
        ({"aud": 5, "exp": "soon"}, Refusal.INVALID_TOKEN),
    ],
)
async def test_refusal_follows_the_claims_of_the_token(claims: dict[str, Any], expected: Refusal, clock: Clock) -> None:
    asked = reviews(ApiServer(status(authenticated=False)), clock)
    with pytest.raises(Refused) as refused:
        await asked.pod_of(f"Bearer {token(**claims)}", "10.0.0.1")
    assert refused.value.refusal is expected


async def test_an_accepted_token_is_believed_for_a_while(clock: Clock) -> None:
    server = ApiServer(status())
    asked = reviews(server, clock)
    header = f"Bearer {token(exp=clock.now + 3600)}"
    for _ in range(3):
        assert (await asked.pod_of(header, "10.0.0.1")).uid == "uid-0"
    assert server.asked == 1
    clock.now += TTL
    await asked.pod_of(header, "10.0.0.1")
    assert server.asked == 2


async def test_accepted_token_is_not_believed_after_it_expires(clock: Clock) -> None:
    server = ApiServer(status())
    asked = reviews(server, clock)
    header = f"Bearer {token(exp=clock.now + 10)}"
    await asked.pod_of(header, "10.0.0.1")
    clock.now += 10
    server.answer = status(authenticated=False)
    with pytest.raises(Refused):
        await asked.pod_of(header, "10.0.0.1")


async def test_a_forgotten_token_is_reviewed_again(clock: Clock) -> None:
    server = ApiServer(status())
    asked = reviews(server, clock)
    await asked.pod_of(f"Bearer {token()}", "10.0.0.1")
    asked.forget(f"Bearer {token()}")
    await asked.pod_of(f"Bearer {token()}", "10.0.0.1")
    assert server.asked == 2


async def test_refused_token_is_not_reviewed_again_for_a_moment(clock: Clock) -> None:
    server = ApiServer(status(authenticated=False))
    asked = reviews(server, clock)
    for _ in range(3):
        with pytest.raises(Refused):
            await asked.pod_of(f"Bearer {token()}", "10.0.0.1")
    assert server.asked == 1
    clock.now += REFUSED_TTL
    server.answer = status()
    assert (await asked.pod_of(f"Bearer {token()}", "10.0.0.1")).uid == "uid-0"


async def test_token_guesses_do_not_reach_the_api_server(clock: Clock) -> None:
    server = ApiServer(status(authenticated=False))
    asked = reviews(server, clock)
    said = []
    for guess in range(100):
        with pytest.raises(Refused) as refused:
            await asked.pod_of(f"Bearer {token(guess=guess)}", "10.0.0.1")
        said.append(refused.value.refusal)
    assert server.asked == GUESSES_AT_ONCE
    assert said[-1] is Refusal.RATE_LIMITED
    with pytest.raises(Refused) as refused:
        await asked.pod_of(f"Bearer {token(guess='x')}", "10.0.0.2")
    assert refused.value.refusal is Refusal.INVALID_TOKEN


async def test_many_good_tokens_of_one_address_are_no_guesses(clock: Clock) -> None:
    """A mesh or a NAT may put a whole node's pods behind one address."""
    server = ApiServer(status())
    asked = reviews(server, clock)
    for pod in range(5 * GUESSES_AT_ONCE):
        await asked.pod_of(f"Bearer {token(pod=pod)}", "10.0.0.1")
    assert server.asked == 5 * GUESSES_AT_ONCE


async def test_token_guesses_do_not_silence_others_behind_the_address(clock: Clock) -> None:
    """Neither under its own name, nor under those of pods that are not there."""
    server = ApiServer(status(authenticated=False))
    asked = reviews(server, clock, "bad", "good")
    for guess in range(100):
        for header in (bound_to("bad", guess=guess), bound_to(f"none-{guess}")):
            with pytest.raises(Refused):
                await asked.pod_of(header, "127.0.0.6")
    assert server.asked == 2 * GUESSES_AT_ONCE
    server.answer = status()
    assert (await asked.pod_of(bound_to("good"), "127.0.0.6")).uid == "uid-0"


async def test_a_token_that_was_accepted_before_is_no_guess(clock: Clock) -> None:
    server = ApiServer(status())
    asked = reviews(server, clock, "good")
    await asked.pod_of(bound_to("good"), "127.0.0.6")
    clock.now += TTL
    server.answer = status(authenticated=False)
    for guess in range(100):
        with pytest.raises(Refused):
            await asked.pod_of(bound_to("good", guess=guess), "127.0.0.6")
    server.answer = status()
    assert (await asked.pod_of(bound_to("good"), "127.0.0.6")).uid == "uid-0"


@pytest.mark.parametrize(
    "claims", [{}, {"kubernetes.io": 7}, {"kubernetes.io": {"namespace": "team"}}, {"kubernetes.io": {"pod": []}}]
)
def test_a_token_that_names_no_pod_claims_none(claims: dict[str, Any]) -> None:
    assert claimed_pod(claims) is None


async def test_unavailable_token_review_is_tried_again(clock: Clock) -> None:
    server = ApiServer(ApiError(500, "InternalError", "no"))
    asked = reviews(server, clock)
    with pytest.raises(Refused) as refused:
        await asked.pod_of(f"Bearer {token()}", "10.0.0.1")
    assert refused.value.refusal is Refusal.UNAVAILABLE
    assert refused.value.retry_after
    server.answer = status()
    assert (await asked.pod_of(f"Bearer {token()}", "10.0.0.1")).uid == "uid-0"
