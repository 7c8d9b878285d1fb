"""The election, with a clock that a test turns: a leader never believes longer than the others do."""

import asyncio
from typing import Any

import pytest

from sluice_operator.cluster.errors import ApiError, NotLeading
from sluice_operator.cluster.lease import Lease

Body = dict[str, Any]
SECONDS = 15


class LeaseServer:
    """One Lease object with strict optimistic concurrency, as the API server keeps it."""

    def __init__(self) -> None:
        self.lease: Body | None = None
        self.version = 0
        self.down = False
        self.loses_answers = False

    async def request(self, method: str, _path: str, *, body: Any = None, **_: Any) -> Body:
        await asyncio.sleep(0)
        if self.down:
            raise ApiError(0, "Unreachable", "down")
        if method == "GET":
            if self.lease is None:
                raise ApiError(404, "NotFound", "no lease")
            return self.lease
        if method == "POST" and self.lease is not None:
            raise ApiError(409, "AlreadyExists", "there is one")
        if method == "PUT" and self.lease is None:
            raise ApiError(404, "NotFound", "no lease")
        if method == "PUT" and body["metadata"]["resourceVersion"] != str(self.version):
            raise ApiError(409, "Conflict", "modified")
        self.version += 1
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        if self.loses_answers:
            raise ApiError(0, "Timeout", "no answer")
        return self.lease


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> LeaseServer:
    return LeaseServer()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def candidate(server: LeaseServer, clock: Clock, name: str) -> Lease:
    return Lease(server, "system", name, SECONDS, clock)  # type: ignore[arg-type]


async def tries(lease: Lease) -> bool:
    """One look at the lease, and one attempt if it seems free."""
    body = await lease._get()
    return lease._is_free(body) and await lease._take_over(body)


async def test_one_of_two_gets_a_new_lease(server: LeaseServer, clock: Clock) -> None:
    one, two = candidate(server, clock, "one"), candidate(server, clock, "two")
    assert sorted(await asyncio.gather(tries(one), tries(two))) == [False, True]
    assert [one.leads, two.leads] in ([True, False], [False, True])


async def test_candidate_that_never_led_may_not_write(server: LeaseServer, clock: Clock) -> None:
    with pytest.raises(NotLeading):
        candidate(server, clock, "one").check()


async def test_a_paused_leader_may_not_write_before_another_may(server: LeaseServer, clock: Clock) -> None:
    """Whenever the pause, and however long the other has watched: never two at once."""
    for pause in range(1, 40):
        server.lease, server.version = None, 0
        one, two = candidate(server, clock, f"one-{pause}"), candidate(server, clock, f"two-{pause}")
        assert await tries(one)
        assert not await tries(two)
        clock.now += pause
        won = await tries(two)
        assert not (one.leads and two.leads)
        assert won == (pause >= SECONDS)


async def test_a_write_may_not_take_longer_than_the_lease(server: LeaseServer, clock: Clock) -> None:
    one = candidate(server, clock, "one")
    await tries(one)
    clock.now += 5
    assert one.check() == SECONDS - 5
    clock.now += SECONDS - 5 - SECONDS / 5
    with pytest.raises(NotLeading):
        one.check()


async def test_renewed_lease_keeps_other_candidates_out(server: LeaseServer, clock: Clock) -> None:
    one, two = candidate(server, clock, "one"), candidate(server, clock, "two")
    await tries(one)
    for _ in range(20):
        clock.now += 4
        assert await one._renew()
        assert not await tries(two)
    assert one.leads


async def test_the_term_grows_with_every_leader_even_if_the_lease_was_deleted(
    server: LeaseServer, clock: Clock
) -> None:
    one, two = candidate(server, clock, "one"), candidate(server, clock, "two")
    await tries(one)
    first = one.term
    await one.release()
    assert not one.leads
    assert await tries(two), "a released lease is free at once"
    assert two.term == first + 1
    server.lease = None
    assert not await two._renew()
    assert not two.leads
    third = candidate(server, clock, "three")
    assert await tries(third)
    assert third.term >= first


async def test_term_grows_when_the_same_process_leads_again(server: LeaseServer, clock: Clock) -> None:
    one = candidate(server, clock, "one")
    await tries(one)
    first = one.term
    clock.now += 100
    assert not one.leads
    assert await tries(one)
    assert one.term == first + 1


async def test_an_answer_that_was_lost_does_not_cost_the_lease(server: LeaseServer, clock: Clock) -> None:
    one = candidate(server, clock, "one")
    await tries(one)
    server.loses_answers = True
    clock.now += 3
    assert not await one._renew()
    server.loses_answers = False
    clock.now += 1
    assert not await one._renew()  # learns that the lost renewal had arrived
    assert await one._renew()
    assert one.leads


async def test_term_ends_in_time_when_the_api_server_is_down(server: LeaseServer, clock: Clock) -> None:
    one = candidate(server, clock, "one")
    await tries(one)
    server.down = True
    clock.now += 11
    assert not await one._renew()
    assert one.leads
    clock.now += 1
    assert not one.leads


async def test_lost_lease_cancels_the_work_and_shutdown_releases_it() -> None:
    server = LeaseServer()
    lease = Lease(server, "system", "one", 1)  # type: ignore[arg-type]
    acting = asyncio.Event()
    ended = asyncio.Event()

    async def lead() -> None:
        acting.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.create_task(lease.run(lead))
    await asyncio.wait_for(acting.wait(), 5)
    server.version += 1  # somebody else has written it
    assert server.lease is not None
    server.lease = {
        **server.lease,
        "metadata": {**server.lease["metadata"], "resourceVersion": str(server.version)},
        "spec": {**server.lease["spec"], "holderIdentity": "two"},
    }
    await asyncio.wait_for(ended.wait(), 5)
    assert not lease.leads
    acting.clear()
    await asyncio.wait_for(acting.wait(), 5)  # "two" never renews
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert server.lease["spec"]["holderIdentity"] == ""
