"""A kubelet that runs nothing: bound pods run and are ready at once, deleted pods are gone at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.integration.history import History, Version
from tests.integration.nodes import finish_pod, set_pod_running
from tests.integration.progress_scene import Kube

Body = dict[str, Any]

_TRIED_AGAIN_SECONDS = 0.2


@dataclass
class FakeKubelet:
    """What happens to the pods of one namespace."""

    kube: Kube
    history: History
    runs: Callable[[Body], bool] = lambda _pod: True
    """Which bound pods run."""
    ends: Callable[[Body], bool] = lambda _pod: True
    """Which deleted pods end."""
    exit_code: int = 75
    """How a stage's pod ends that is deleted: trainers save their state and ask to be tried again."""
    _started: set[str] = field(default_factory=set)
    _ended: set[str] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    @asynccontextmanager
    async def of(cls, kube: Kube, history: History) -> AsyncIterator["FakeKubelet"]:
        """Serve until the block ends."""
        kubelet = cls(kube, history)
        history.listeners.append(kubelet._take)
        try:
            yield kubelet
        finally:
            history.listeners.remove(kubelet._take)
            for task in kubelet._tasks:
                task.cancel()
            await asyncio.gather(*kubelet._tasks, return_exceptions=True)

    def _take(self, version: Version) -> None:
        pod = version.body
        if version.plural != "pods" or version.gone or not pod["spec"].get("nodeName"):
            return
        uid = pod["metadata"]["uid"]
        if pod["metadata"].get("deletionTimestamp"):
            if uid not in self._ended and self.ends(pod):
                self._ended.add(uid)
                self._do(partial(self._end, pod))
        elif uid not in self._started and self.runs(pod):
            self._started.add(uid)
            self._do(partial(set_pod_running, self.kube, pod))

    def _do(self, work: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.create_task(self._quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _quietly(self, work: Callable[[], Awaitable[None]]) -> None:
        """A pod that is gone needs nothing. What an API server fails at, as without its etcd, is tried again."""
        while True:
            try:
                return await work()
            except LookupError as error:
                if ": 404 " in str(error) or ": 409 " in str(error):
                    return None
                if ": 500 " not in str(error):
                    raise
            await asyncio.sleep(_TRIED_AGAIN_SECONDS)

    async def _end(self, pod: Body) -> None:
        """End its containers, then take it away."""
        if pod["status"].get("phase") in ("Pending", "Running"):
            stage = "sluice.dev/stage" in pod["metadata"].get("labels", {})
            await finish_pod(self.kube, pod, self.exit_code if stage else 0)
        place = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        await self.kube.call(
            "DELETE", place, {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        )
