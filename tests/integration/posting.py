"""A trainer's reports, posted to whichever operator takes them, as the real one posts: on and on, and never first."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from sluice_api.pods import TOKEN_AUDIENCE
from sluice_api.reports import TRAINING_REPORTS_PATH, Activity, TrainingReport
from tests.integration.progress_scene import Kube
from tests.integration.running_operator import RunningOperator

Body = dict[str, Any]

EVERY_SECONDS = 0.5
ANSWERED_WITHIN = aiohttp.ClientTimeout(total=1)


@dataclass
class Posting:
    """A training that makes a step with each report. The progress Service is played here: all operators are asked."""

    operators: Collection[RunningOperator]
    token: str
    session: aiohttp.ClientSession
    step: int = 0
    pauses: bool = False
    """It posts nothing, as the real one does for up to 10 s after posts that failed."""
    taken: asyncio.Condition = field(default_factory=asyncio.Condition)
    """Somebody has accepted a report."""

    @classmethod
    @asynccontextmanager
    async def of(cls, kube: Kube, pod: Body, operators: Collection[RunningOperator]) -> AsyncIterator["Posting"]:
        """Post until the block ends; operators may come and go meanwhile."""
        async with aiohttp.ClientSession(timeout=ANSWERED_WITHIN) as session:
            posting = cls(operators, await token_of(kube, pod), session)
            task = asyncio.create_task(posting._post_on_and_on())
            try:
                yield posting
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def heard(self, reports: int = 3, within: float = 40) -> None:
        """Wait until so many more reports have been accepted."""
        async with asyncio.timeout(within), self.taken:
            for _ in range(reports):
                await self.taken.wait()

    async def _post_on_and_on(self) -> None:
        while True:
            if self.pauses:
                await asyncio.sleep(EVERY_SECONDS)
                continue
            self.step += 1
            if any(await asyncio.gather(*(self._post(operator.progress_port) for operator in [*self.operators]))):
                async with self.taken:
                    self.taken.notify_all()
            await asyncio.sleep(EVERY_SECONDS)

    async def _post(self, port: int) -> bool:
        report = TrainingReport(
            attempt=1,
            sequence=self.step,
            activity=Activity.TRAINING,
            step=self.step,
            total_steps=10_000,
            step_seconds=EVERY_SECONDS,
        )
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        try:
            async with self.session.post(
                f"http://127.0.0.1:{port}{TRAINING_REPORTS_PATH}", data=report.to_json(), headers=headers
            ) as answer:
                return answer.status == 202
        except (aiohttp.ClientError, TimeoutError):
            return False  # it is dead, stopped, or has not begun to listen


async def token_of(kube: Kube, pod: Body) -> str:
    """A token for reports that is bound to a pod, as the kubelet would mount it."""
    place, account = pod["metadata"], pod["spec"].get("serviceAccountName", "default")
    bound = {"apiVersion": "v1", "kind": "Pod", "name": place["name"], "uid": place["uid"]}
    spec = {"audiences": [TOKEN_AUDIENCE], "expirationSeconds": 3600, "boundObjectRef": bound}
    path = f"/api/v1/namespaces/{place['namespace']}/serviceaccounts/{account}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return str((await kube.call("POST", path, body))["status"]["token"])
