"""ResourceQuota and LimitRange of a namespace: what the API server refuses or changes, before anybody is disturbed."""

import time
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.claim_scene import ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import MERGE_PATCH, Nodes
from tests.integration.progress_scene import Kube

pytestmark = pytest.mark.integration

Body = dict[str, Any]
POLICIES = "/apis/admissionregistration.k8s.io/v1"


@pytest_asyncio.fixture
async def serving(scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator) -> ClaimScene:
    """An engine of two slots on a node of two GPUs, of which it lends one."""
    await nodes.add(f"{namespace}-n1", gpus=2)
    operator()
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    return scene


def was_disturbed(scene: ClaimScene) -> list[str]:
    """States of slots that a loan has had at any time."""
    states = (
        slot["state"]
        for version in scene.history.ordered("inferenceengines")
        for slot in version.body.get("status", {}).get("slots", [])
    )
    return [state for state in states if state not in ("Waiting", "Starting", "Serving")]


async def limit(kube: Kube, namespace: str, **item: Body) -> None:
    """A LimitRange about containers."""
    body = {"metadata": {"name": "limits"}, "spec": {"limits": [{"type": "Container", **item}]}}
    await kube.call("POST", f"/api/v1/namespaces/{namespace}/limitranges", body)


async def test_a_job_starts_when_the_quota_that_refused_it_is_raised(serving: ClaimScene, kube: Kube) -> None:
    place = f"/api/v1/namespaces/{serving.namespace}/resourcequotas"
    quota = {"metadata": {"name": "gpus"}, "spec": {"hard": {"requests.nvidia.com/gpu": "2"}}}
    await kube.call("POST", place, quota)
    await counted(serving, kube, "gpus")
    await serving.job("tone")
    message = await serving.job_says("tone", "QuotaExceeded")
    assert "exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=2" in message
    assert "nothing is drained" in message
    assert was_disturbed(serving) == []
    await kube.call("PATCH", f"{place}/gpus", {"spec": {"hard": {"requests.nvidia.com/gpu": "3"}}}, MERGE_PATCH)
    await serving.running("tone", attempt=2)


async def counted(scene: ClaimScene, kube: Kube, name: str) -> None:
    """Wait until the quota controller has counted what is there; nothing announces it."""
    place = f"/api/v1/namespaces/{scene.namespace}/resourcequotas/{name}"
    until = time.monotonic() + 20
    while not (await kube.call("GET", place)).get("status", {}).get("used"):
        assert time.monotonic() < until


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"max": {"memory": "50Mi"}}, "maximum memory usage per Container is 50Mi, but limit is 100Mi"),
        ({"min": {"cpu": "2"}}, "minimum cpu usage per Container is 2, but request is 10m"),
        ({"default": {"cpu": "5m"}}, "must be less than or equal to cpu limit of 5m"),
    ],
)
async def test_a_limit_range_that_refuses_the_training_pod_is_quoted(
    serving: ClaimScene, kube: Kube, item: Body, said: str
) -> None:
    await limit(kube, serving.namespace, **item)
    await serving.job("tone")
    message = await serving.job_says("tone", "RefusedByAdmission")
    assert said in message
    assert was_disturbed(serving) == []
    await kube.call("DELETE", f"/api/v1/namespaces/{serving.namespace}/limitranges/limits")
    await serving.running("tone", attempt=2)


async def ask_for_more_disk(kube: Kube, namespace: str) -> None:
    """Have the API server let every Job's pod of a namespace ask for 8Gi of disk, and return when it does."""
    to_pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    where = {"kubernetes.io/metadata.name": namespace}
    of_jobs = {"matchExpressions": [{"key": "batch.kubernetes.io/job-name", "operator": "Exists"}]}
    place = "/spec/containers/0/resources/requests/ephemeral-storage"
    patch = f'[JSONPatch{{op: "add", path: "{place}", value: "8Gi"}}]'
    policy = {
        "metadata": {"name": namespace},
        "spec": {
            "matchConstraints": {"resourceRules": [to_pods], "objectSelector": of_jobs},
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
        },
    }
    selector = {"namespaceSelector": {"matchLabels": where}}
    binding = {"metadata": {"name": namespace}, "spec": {"policyName": namespace, "matchResources": selector}}
    await kube.call("POST", f"{POLICIES}/mutatingadmissionpolicies", policy)
    await kube.call("POST", f"{POLICIES}/mutatingadmissionpolicybindings", binding)
    container = {"name": "c", "image": "nothing", "resources": {"requests": {"ephemeral-storage": "1Gi"}}}
    metadata = {"name": "tried", "labels": {"batch.kubernetes.io/job-name": "tried"}}
    tried = {"metadata": metadata, "spec": {"containers": [container]}}
    until = time.monotonic() + 20
    while True:  # nothing announces that a policy is in force
        made = await kube.call("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", tried)
        if made["spec"]["containers"][0]["resources"]["requests"]["ephemeral-storage"] == "8Gi":
            return
        assert time.monotonic() < until


async def test_requests_added_by_an_admission_policy_must_fit_the_node(
    serving: ClaimScene, nodes: Nodes, kube: Kube
) -> None:
    """A larger request than the job's. kube-scheduler counts it, and so does the proof: no slot drains for it."""
    disk = {"status": {key: {"ephemeral-storage": "5Gi"} for key in ("capacity", "allocatable")}}
    await kube.call("PATCH", f"/api/v1/nodes/{serving.namespace}-n1/status", disk, MERGE_PATCH)
    await ask_for_more_disk(kube, serving.namespace)
    try:
        await serving.job("tone")
        message = await serving.job_says("tone", "Unschedulable")
        assert "ephemeral-storage: needs 8Gi, 3.94Gi of 5Gi is left" in message
        await serving.history.never(lambda: was_disturbed(serving), "a slot was taken", 3)
    finally:
        await kube.call("DELETE", f"{POLICIES}/mutatingadmissionpolicybindings/{serving.namespace}")
        await kube.call("DELETE", f"{POLICIES}/mutatingadmissionpolicies/{serving.namespace}")


async def test_requests_added_by_a_limit_range_are_no_obstacle_if_they_fit(serving: ClaimScene, kube: Kube) -> None:
    await limit(kube, serving.namespace, default={"cpu": "4"}, min={"ephemeral-storage": "64Mi"})
    await serving.job("tone")
    pod = await serving.running("tone")
    assert pod["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "4"
