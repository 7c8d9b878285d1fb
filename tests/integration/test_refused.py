"""Refusals of a real API server: each is told in its words, is its own object's alone, and takes over nothing."""

from typing import Any

import pytest

from sluice_api.meta import API_VERSION
from sluice_api.stages import Stage
from tests.integration.claim_scene import ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import Kube, until
from tests.integration.test_quota_and_limits import counted

pytestmark = pytest.mark.integration

Body = dict[str, Any]


ADMISSION = "/apis/admissionregistration.k8s.io/v1"
POLICIES, BINDINGS = f"{ADMISSION}/validatingadmissionpolicies", f"{ADMISSION}/validatingadmissionpolicybindings"


async def refuse_jobs_of(kube: Kube, namespace: str, job: str) -> str:
    """A policy that takes no batch/v1 Job of one FineTuneJob; its name, once it is in force."""
    name, label = f"refuse-{namespace}", "object.metadata.labels[?'sluice.dev/job'].orValue('')"
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"], "operations": ["CREATE"]}
    no = {"expression": f"{label} != '{job}'", "message": "no cost centre"}
    spec: Body = {"matchConstraints": {"resourceRules": [rule]}, "validations": [no], "failurePolicy": "Fail"}
    await kube.call("POST", POLICIES, {"metadata": {"name": name}, "spec": spec})
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    bound = {"policyName": name, "validationActions": ["Deny"], "matchResources": here}
    await kube.call("POST", BINDINGS, {"metadata": {"name": name}, "spec": bound})
    pod = {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}
    tried = {"metadata": {"name": "x", "labels": {"sluice.dev/job": job}}, "spec": {"template": {"spec": pod}}}
    place = f"/apis/batch/v1/namespaces/{namespace}/jobs?dryRun=All"

    async def in_force() -> bool:
        return "no cost centre" in await refusal(kube, place, tried)

    await until(in_force)
    return name


async def refusal(kube: Kube, place: str, body: Body) -> str:
    """What is said against an object; empty if nothing is."""
    try:
        await kube.call("POST", place, body)
    except LookupError as refused:
        return str(refused)
    return ""


async def test_job_refused_by_admission_leaves_its_gpu_to_the_next(
    scene: ClaimScene, kube: Kube, nodes: Nodes, operator: MakeOperator
) -> None:
    await nodes.add(f"{scene.namespace}-n1", gpus=1)
    policy = await refuse_jobs_of(kube, scene.namespace, "first")
    try:
        operator()
        await scene.job("first", policy="Queue", priority=5)
        assert "no cost centre" in await scene.job_says("first", "RefusedByAdmission")
        await scene.job("second", policy="Queue")
        await scene.running("second")
    finally:
        for place in (BINDINGS, POLICIES):
            await kube.call("DELETE", f"{place}/{policy}")


async def test_job_refused_by_an_object_quota_resumes_without_the_quota(
    scene: ClaimScene, kube: Kube, operator: MakeOperator, nodes: Nodes
) -> None:
    await nodes.add(f"{scene.namespace}-n1", gpus=1)
    place = f"/api/v1/namespaces/{scene.namespace}/resourcequotas"
    await kube.call("POST", place, {"metadata": {"name": "objects"}, "spec": {"hard": {"count/jobs.batch": "0"}}})
    await counted(scene, kube, "objects")
    operator()
    await scene.job("tone", prepared=False)
    message = await scene.job_says("tone", "QuotaExceeded")
    assert "exceeded quota: objects, requested: count/jobs.batch=1" in message
    await kube.call("DELETE", f"{place}/objects")
    await scene.running("tone", Stage.PREPARE, attempt=2)


@pytest.mark.parametrize(
    ("plural", "name", "spec"),
    [
        ("services", "chat", {"spec": {"selector": {"app": "db"}, "ports": [{"port": 5432}]}}),
        ("serviceaccounts", "chat-agent", {}),
    ],
)
async def test_object_with_the_engines_name_is_name_taken_until_deleted(
    scene: ClaimScene, kube: Kube, nodes: Nodes, operator: MakeOperator, plural: str, name: str, spec: Body
) -> None:
    await nodes.add(f"{scene.namespace}-n1", gpus=1)
    place = f"/api/v1/namespaces/{scene.namespace}/{plural}"
    before = await kube.call("POST", place, {"metadata": {"name": name}, **spec})
    operator()
    await scene.engine("chat", replicas=1, floor=0)

    def refused() -> str | None:
        conditions = scene.status("inferenceengines", "chat").get("conditions") or ()
        return next((c["message"] for c in conditions if c["reason"] == "NameTaken"), None)

    message = await scene.history.until(refused, "chat says NameTaken")
    assert f"{name} is there already" in message
    await scene.job("tone", policy="Queue")
    await scene.running("tone")  # the engine is older, and keeps no GPU that it can't use
    now = await kube.call("GET", f"{place}/{name}")
    assert now["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    await kube.call("DELETE", f"{place}/{name}")
    await scene.finishes("tone")
    await scene.serves(1)


async def test_publish_replace_overwrites_an_adapter_made_by_hand(
    scene: ClaimScene, kube: Kube, nodes: Nodes, operator: MakeOperator
) -> None:
    await nodes.add(f"{scene.namespace}-n1", gpus=1)
    operator()
    await scene.engine("chat", replicas=0, floor=0)
    spec = {"engine": "chat", "source": {"uri": "pvc://volume/by-hand"}}
    body = {"apiVersion": API_VERSION, "kind": "Adapter", "metadata": {"name": "tone"}, "spec": spec}
    made = await kube.call("POST", scene.path("adapters"), body)
    await scene.job("tone", policy="Queue", publish="chat")
    assert "was not written by a job" in await scene.job_says("tone", "NameTaken")
    await scene.patch("finetunejobs", "tone", {"spec": {"publish": {"replace": True}}})
    await scene.finishes("tone")
    await scene.finishes("tone", Stage.EXPORT)

    def replaced() -> Body | None:
        there: Body | None = scene.history.now["adapters"].get("tone")
        return there if there and there["spec"]["source"]["uri"].endswith("/out/export") else None

    there = await scene.history.until(replaced, "the Adapter is the job's")
    assert there["metadata"]["uid"] == made["metadata"]["uid"]
    assert there["metadata"]["labels"]["sluice.dev/job"] == "tone"
