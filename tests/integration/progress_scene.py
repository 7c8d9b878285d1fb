"""A namespace on a real API server with the reports' server over it, and a store primed by lists."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp
from kubernetes.aio import config

from dev.cluster.control_plane import ControlPlane
from dev.cluster.ports import free_port
from sluice_api.claim import Claim, NodeAllocation
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPoolSpec
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import API_VERSION, FIELD_MANAGER
from sluice_api.pods import TOKEN_AUDIENCE
from sluice_api.reports import ENGINE_REPORTS_PATH, TRAINING_REPORTS_PATH
from sluice_api.stages import Stage
from sluice_operator.clock import Clock
from sluice_operator.cluster.client import Api
from sluice_operator.cluster.cluster import Cluster
from sluice_operator.manifests.engine import slot_deployment
from sluice_operator.manifests.stage_job import stage_job
from sluice_operator.observe.parse import parse
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.progress.intake import Intake
from sluice_operator.progress.server import serve
from sluice_operator.settings import Settings

SLUICE = f"/apis/{API_VERSION}"
LISTS = {
    "FineTuneJob": f"{SLUICE}/finetunejobs",
    "InferenceEngine": f"{SLUICE}/inferenceengines",
    "Pod": "/api/v1/pods",
    "Job": "/apis/batch/v1/jobs",
    "Deployment": "/apis/apps/v1/deployments",
}
KEEP = "test.sluice.dev/keep"
"""A finalizer: what has it stays to be looked at after it was deleted."""
JOB_SPEC = {
    "model": {"uri": "pvc://models/tiny"},
    "dataset": {"uri": "pvc://datasets/rows.jsonl"},
    "output": {"uri": "pvc://adapters/out"},
}
PATIENCE_SECONDS = 60

Body = dict[str, Any]


class Kube:
    """The API server, by its own paths."""

    def __init__(self, server: str, session: aiohttp.ClientSession) -> None:
        self._server = server
        self._session = session

    async def call(self, method: str, path: str, body: Body | None = None, kind: str = "application/json") -> Body:
        """One request; again while the API server asks for patience (a new resource's cache fills)."""
        headers = {"Content-Type": kind}
        while True:
            async with self._session.request(method, self._server + path, json=body, headers=headers) as answer:
                found: Body = await answer.json()
                if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
                    await asyncio.sleep(float(answer.headers.get("Retry-After", "1")))
                    continue
                if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
                    raise LookupError(f"{method} {path}: {answer.status} {found.get('message')}")
                return found

    async def watch(self, path: str) -> AsyncIterator[Body]:
        """All events of a collection from now on. The API server ends a watch that is slow to read; it goes on then."""
        version = (await self.call("GET", f"{path}?limit=1"))["metadata"]["resourceVersion"]
        forever = aiohttp.ClientTimeout(total=None)
        while True:
            address = f"{self._server}{path}?watch=1&resourceVersion={version}"
            async with self._session.get(address, timeout=forever, read_bufsize=2**20) as answer:
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise LookupError(f"{path}: {event['object']}")
                    version = event["object"]["metadata"]["resourceVersion"]
                    yield event


class Leading:
    """A lease that is held for ever."""

    term = 1

    def check(self) -> float:
        """Seconds."""
        return 10.0


@dataclass
class Scene:
    """One namespace, and the server that takes reports."""

    kube: Kube
    api: Api
    session: aiohttp.ClientSession
    namespace: str
    store: Store = field(default_factory=Store)
    woken: list[Key] = field(default_factory=list)
    leads: bool = True
    clock: Clock = field(default_factory=Clock)
    settings: Settings = field(default_factory=lambda: settings_on(free_port()))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Intake]:
        """Take reports; each time with a memory of its own."""
        async with serve(
            self.settings, self.store, self.api, self.cluster, lambda: self.leads, self.woken.append, self.clock.now
        ) as intake:
            yield intake

    @property
    def cluster(self) -> Cluster:
        """What writes progress."""
        return Cluster(self.api, self.store, Leading(), "test")

    async def refresh(self) -> None:
        """Prime the store by one list of every kind."""
        for kind, path in LISTS.items():
            newest_before = self.store.newest(kind)
            found = await self.kube.call("GET", path)
            here = [parse(kind, item) for item in found["items"]]
            self.store.replace(kind, here, int(found["metadata"]["resourceVersion"]), newest_before)

    async def post(self, token: str, report: Body, path: str = TRAINING_REPORTS_PATH) -> tuple[int, str]:
        """Post a report: the answer's status, and its error's name."""
        url = f"http://127.0.0.1:{self.settings.progress_port}{path}"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.session.post(url, json=report, headers=headers) as answer:
            return answer.status, "" if answer.status == 202 else (await answer.json())["error"]

    async def post_engine(self, token: str, report: Body) -> tuple[int, str]:
        return await self.post(token, report, ENGINE_REPORTS_PATH)

    async def job(self, name: str) -> FineTuneJob:
        """Create a FineTuneJob."""
        body = {"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": {"name": name}, "spec": JOB_SPEC}
        made = await self.kube.call("POST", f"{SLUICE}/namespaces/{self.namespace}/finetunejobs", body)
        job = parse("FineTuneJob", made)
        assert isinstance(job, FineTuneJob)
        return job

    async def stage_pod(self, job: FineTuneJob, attempt: int = 1, *, keep: bool = False) -> Body:
        """Create a training Job as the operator does; the pod that the Job controller makes for it."""
        claim = Claim(pool="default", resource="nvidia.com/gpu", gpus=1, places=(NodeAllocation(node="gpu-1"),), term=1)
        body = stage_job(job, Stage.TRAIN, attempt, self.settings, claim, seconds=3600)
        if keep:
            body["metadata"]["finalizers"] = [KEEP]
            body["spec"]["template"]["metadata"]["finalizers"] = [KEEP]
        made = await self.kube.call("POST", f"/apis/batch/v1/namespaces/{self.namespace}/jobs", body)
        return await self.pod_of(made["metadata"]["uid"])

    async def engine_pod(self, name: str, *, keep: bool = False) -> Body:
        """Create an engine with one slot as the operator does; the slot's pod."""
        spec = {"model": {"uri": "pvc://models/tiny"}, "lora": {}}
        body = {"apiVersion": API_VERSION, "kind": "InferenceEngine", "metadata": {"name": name}, "spec": spec}
        made = await self.kube.call("POST", f"{SLUICE}/namespaces/{self.namespace}/inferenceengines", body)
        engine = parse("InferenceEngine", made)
        assert isinstance(engine, InferenceEngine)
        account = {"metadata": {"name": f"{name}-agent"}}
        await self.kube.call("POST", f"/api/v1/namespaces/{self.namespace}/serviceaccounts", account)
        slot = slot_deployment(engine, 0, 1, "template", pool=GPUPoolSpec(), settings=self.settings)
        if keep:
            slot["metadata"]["finalizers"] = [KEEP]
            slot["spec"]["template"]["metadata"]["finalizers"] = [KEEP]
        await self.kube.call("POST", f"/apis/apps/v1/namespaces/{self.namespace}/deployments", slot)
        return await self.pod_where(lambda pod: pod["metadata"]["labels"].get("sluice.dev/engine") == name)

    async def pod_of(self, owner: str) -> Body:
        """The pod of a controller."""
        return await self.pod_where(lambda pod: any(o["uid"] == owner for o in pod["metadata"]["ownerReferences"]))

    async def pod_where(self, fits: Callable[[Body], bool]) -> Body:
        """The first pod that fits, as soon as it is there and its account too."""

        async def found() -> list[Body]:
            pods = (await self.kube.call("GET", f"/api/v1/namespaces/{self.namespace}/pods"))["items"]
            return [pod for pod in pods if pod["metadata"].get("ownerReferences") and fits(pod)]

        pods: list[Body] = await until(found)
        return pods[0]

    async def bind(self, pod: Body) -> None:
        """Take a pod's gates off, and put it on a node, as the scheduler does."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}"
        node = {"apiVersion": "v1", "kind": "Node", "name": "gpu-1"}
        await self.kube.call("PATCH", path, {"spec": {"schedulingGates": None}}, "application/merge-patch+json")
        await self.kube.call("POST", f"{path}/binding", {"metadata": {"name": pod["metadata"]["name"]}, "target": node})

    async def forged_pod(self, namespace: str, name: str, labels: Body, owner: Body | None) -> Body:
        """A pod that anybody makes who may create pods; it stays when a controller deletes it."""
        metadata: Body = {"name": name, "labels": labels, "finalizers": [KEEP]}
        if owner:
            metadata["ownerReferences"] = [{**owner, "controller": True}]
        spec = {"containers": [{"name": "trainer", "image": "nothing"}]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        return await self.kube.call("POST", f"/api/v1/namespaces/{namespace}/pods", body)

    async def token(self, pod: Body, audience: str = TOKEN_AUDIENCE, *, bound: bool = True) -> str:
        """A token of a pod's account, bound to that pod."""
        place, account = pod["metadata"], pod["spec"].get("serviceAccountName", "default")
        spec: Body = {"audiences": [audience], "expirationSeconds": 3600}
        if bound:
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": place["name"], "uid": place["uid"]}
        path = f"/api/v1/namespaces/{place['namespace']}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = await self.kube.call("POST", path, body)
        return str(answer["status"]["token"])

    async def delete_pod(self, pod: Body) -> None:
        """Delete a pod at once. It stays if it has a finalizer of ours; the Job controller's own goes soon."""
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        await self.kube.call("DELETE", path, {"gracePeriodSeconds": 0})
        if KEEP in pod["metadata"].get("finalizers", ()):
            return
        await self.kube.call("PATCH", path, {"metadata": {"finalizers": None}}, "application/merge-patch+json")

        async def gone() -> bool:
            return not await self._is_there(path)

        await until(gone)

    async def _is_there(self, path: str) -> bool:
        try:
            await self.kube.call("GET", path)
        except LookupError:
            return False
        return True

    async def apply_status(self, job: FineTuneJob, status: Body) -> None:
        """Write status as the operator's reconcile does."""
        path = f"{SLUICE}/namespaces/{self.namespace}/finetunejobs/{job.metadata.name}/status"
        body = {"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": {"name": job.metadata.name}}
        query = f"?fieldManager={FIELD_MANAGER}&force=true"
        await self.kube.call("PATCH", path + query, {**body, "status": status}, "application/apply-patch+yaml")

    async def stored(self, name: str) -> Body:
        """A FineTuneJob as the API server has it."""
        return await self.kube.call("GET", f"{SLUICE}/namespaces/{self.namespace}/finetunejobs/{name}")

    async def written(self, name: str, percent: str) -> Body:
        """The job once its status shows this progress."""

        async def shown() -> Body | None:
            job = await self.stored(name)
            return job if job.get("status", {}).get("progress", {}).get("percent") == percent else None

        job: Body = await until(shown)
        return job


@asynccontextmanager
async def scene(plane: ControlPlane) -> AsyncIterator[Scene]:
    """A new namespace."""
    api = await config.new_client_from_config(str(plane.kubeconfig))
    tls = aiohttp.TCPConnector(ssl=api.rest_client.ssl_context)
    async with aiohttp.ClientSession(connector=tls) as session, aiohttp.ClientSession() as plain:
        kube = Kube(plane.server, session)
        namespace = f"progress-{random.randrange(10**9)}"
        await make_namespace(kube, namespace)
        try:
            yield Scene(kube, Api(api), plain, namespace)
        finally:
            await api.close()


async def make_namespace(kube: Kube, name: str) -> None:
    """A namespace with its default account."""
    await kube.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    await has_account(kube, name)


async def has_account(kube: Kube, name: str) -> None:
    """Wait until a namespace has its default account: then pods can be made in it."""

    async def account() -> Any:
        return (await kube.call("GET", f"/api/v1/namespaces/{name}/serviceaccounts"))["items"]

    await until(account)


async def until(there: Callable[[], Awaitable[Any]]) -> Any:
    """What a question is answered with, as soon as that is not empty. No watch: it would be more than the test."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if found := await there():
                return found
            await asyncio.sleep(0.05)


def settings_on(port: int) -> Settings:
    """The operator's settings with the reports' server on a port."""
    return Settings(
        namespace="sluice-system",
        pod_name="sluice-0",
        report_url=f"http://127.0.0.1:{port}",
        trainer_image="nothing",
        server_image="nothing",
        progress_port=port,
    )
