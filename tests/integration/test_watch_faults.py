"""The store against a real API server through a proxy that loses and breaks what it brings."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

import pytest
import pytest_asyncio
from kubernetes.aio import config

from dev.faults.proxy import FaultProxy
from dev.faults.rules import Lose, Refuse, error_event
from sluice_operator.cluster.client import Api
from sluice_operator.handlers.kopf_watch import Watches
from sluice_operator.handlers.resync import Resync
from sluice_operator.handlers.watching import take_event
from sluice_operator.observe.store import Store
from tests.integration.progress_scene import JOB_SPEC, Kube

pytestmark = pytest.mark.integration

WITHIN = 10
NEVER = 100_000


@dataclass
class Watched:
    """A store that is kept by kopf's watches through the proxy."""

    store: Store
    resync: Resync
    watches: Watches
    kube: Kube
    proxy: FaultProxy
    namespace: str

    @property
    def path(self) -> str:
        return f"/apis/sluice.dev/v1alpha1/namespaces/{self.namespace}/finetunejobs"

    async def create(self, name: str) -> None:
        body = {"apiVersion": "sluice.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}}
        await self.kube.call("POST", self.path, {**body, "spec": JOB_SPEC})

    async def delete(self, name: str) -> None:
        await self.kube.call("DELETE", f"{self.path}/{name}")

    def names(self) -> set[str]:
        return {key.name for key in self.store.world().jobs if key.namespace == self.namespace}

    async def shows(self, *names: str, within: float = WITHIN) -> None:
        await until(lambda: self.names() == set(names), within, lambda: f"{self.names()}, not {set(names)}")


@pytest_asyncio.fixture(params=[NEVER])
async def watched(
    proxy: FaultProxy,
    kube: Kube,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Watched]:
    """The operator's watching half, in this process; the parameter is the time between its full lists."""
    monkeypatch.setenv("KUBECONFIG", str(proxy.kubeconfig))
    client = await config.new_client_from_config(str(proxy.kubeconfig))
    store = Store()
    resync = Resync(Api(client), store, request.param)
    watches = Watches(partial(take_event, store), resync.want)
    resyncing = asyncio.create_task(resync.run())
    stop = asyncio.Event()
    kopf_task = await watches.start("test", stop)
    try:
        await until(lambda: resync.is_primed, 30, lambda: "never primed")
        yield Watched(store, resync, watches, kube, proxy, namespace)
        assert not kopf_task.done(), "kopf has ended"
    finally:
        resyncing.cancel()
        stop.set()
        await asyncio.wait({kopf_task, resyncing})
        await client.close()


async def until(happened: Callable[[], bool], within: float, why: Callable[[], str]) -> None:
    try:
        async with asyncio.timeout(within):
            while not happened():  # noqa: ASYNC110 - a store has no event for a test to wait for
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(why()) from None


async def test_watch_events_reach_the_store(watched: Watched) -> None:
    await watched.create("a")
    await watched.shows("a", within=2)
    await watched.delete("a")
    await watched.shows(within=2)


@pytest.mark.parametrize("watched", [3], indirect=True)
async def test_a_delete_that_the_watch_lost_is_found_by_the_next_full_list(watched: Watched) -> None:
    await watched.create("a")
    await watched.create("b")
    await watched.shows("a", "b")
    watched.proxy.rules.append(Lose(lambda event: event["type"] == "DELETED"))
    await watched.delete("a")
    await watched.shows("b")
    await asyncio.sleep(0)
    assert watched.store.unreadable() == []


@pytest.mark.parametrize("code", [410, 500, 504])
async def test_store_is_right_again_after_a_watch_error(watched: Watched, code: int) -> None:
    """Of what happened unseen before the error, kopf's own new list shows only what is still there."""
    await watched.create("a")
    await watched.create("b")
    await watched.shows("a", "b")
    lose = Lose(lambda _event: True)
    watched.proxy.rules.append(lose)
    await watched.delete("a")
    await watched.create("c")
    watched.proxy.rules.remove(lose)
    assert watched.proxy.send("finetunejobs", error_event(code)) == 1
    await watched.shows("b", "c")
    await watched.create("d")
    await watched.shows("b", "c", "d")


async def test_watch_resumes_after_a_broken_connection(watched: Watched) -> None:
    await watched.create("a")
    await watched.shows("a")
    watched.proxy.cut("finetunejobs")
    await watched.create("b")
    await watched.delete("a")
    await watched.shows("b")


async def test_watch_survives_refusals_of_the_api_server(watched: Watched) -> None:
    refuse = Refuse(lambda asked: asked.plural == "finetunejobs", 503)
    await watched.create("a")
    await watched.shows("a")
    watched.proxy.rules.append(refuse)
    watched.proxy.cut("finetunejobs")
    await watched.create("b")
    await until(lambda: refuse.refused > 2, WITHIN, lambda: "nothing was refused")
    watched.proxy.rules.remove(refuse)
    await watched.shows("a", "b")


async def test_watch_survives_a_rate_limit_error(watched: Watched) -> None:
    await watched.create("a")
    await watched.shows("a")
    watched.proxy.send("finetunejobs", {"type": "ERROR", "object": {"kind": "Status", "code": 429, "message": "slow"}})
    await watched.create("b")
    await watched.shows("a", "b")
