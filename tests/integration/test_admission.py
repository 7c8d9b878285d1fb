"""The chart's admission policy, on a real API server: what a user with `edit` is refused, and what nobody is."""

import asyncio
import runpy
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dev.cluster.control_plane import ControlPlane
from dev.cluster.ports import free_port
from sluice_api.meta import API_VERSION
from tests.integration.progress_scene import JOB_SPEC, Kube, until
from tests.integration.tenants import RELEASE, Tenant, tenant
from tests.unit.chart.helm import CHART

pytestmark = pytest.mark.integration

Body = dict[str, Any]
OURS = {"sluice.dev/engine": "chat"}
PLAIN = {"app": "x"}
CONTAINERS = {"containers": [{"name": "main", "image": "nothing"}]}
ONCE = {**CONTAINERS, "restartPolicy": "Never"}
DEVICES = {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu.example.com"}}]}}
CORE, APPS, BATCH, DRA = "api/v1", "apis/apps/v1", "apis/batch/v1", "apis/resource.k8s.io/v1"
SLUICE = "apis/sluice.dev/v1alpha1"


@dataclass(frozen=True, eq=False)
class Row:
    """An object of a kind, with something of Sluice's somewhere in it."""

    title: str
    group: str
    plural: str
    body: Body
    said: str

    def __str__(self) -> str:
        return self.title


def template(spec: Body, labels: Body | None = None, annotations: Body | None = None, **more: Any) -> Body:
    return {
        "metadata": {"labels": {**PLAIN, **(labels or {})}, "annotations": annotations or {}},
        "spec": {**spec, **more},
    }


def run(of: Body, **more: Any) -> Body:
    """The spec of what runs pods like its template."""
    return {"selector": {"matchLabels": PLAIN}, "template": of, **more}


def made(spec: Body | None = None, labels: Body | None = None, annotations: Body | None = None) -> Body:
    body: Body = {"metadata": {"generateName": "x-", "labels": labels or {}, "annotations": annotations or {}}}
    return body if spec is None else {**body, "spec": spec}


def cron(job: Body, metadata: Body | None = None) -> Body:
    return made({"schedule": "* * * * *", "jobTemplate": {"metadata": metadata or {}, "spec": job}})


FINE_TUNE_JOB = {"apiVersion": API_VERSION, "kind": "FineTuneJob"}
CLAIM = {"sluice.dev/claim": "{}"}
OUTCOMES = {"sluice.dev/outcomes": "{}"}
TAKEN: Body = {"priorityClassName": "sluice-training"}
GPU = {"containers": [{"name": "main", "image": "nothing", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}
PLACED: Body = {"nodeName": "n1"}
MARKED = template(CONTAINERS, OURS)
ROWS = [
    Row("a pod's label", CORE, "pods", made(CONTAINERS, OURS), "sluice.dev/engine"),
    Row(
        "a pod's annotation", CORE, "pods", made(CONTAINERS, None, {"sluice.dev/bound-at": "x"}), "sluice.dev/bound-at"
    ),
    Row("a Job's claim", BATCH, "jobs", made({"template": template(ONCE)}, None, CLAIM), "sluice.dev/claim"),
    Row("a Job's template", BATCH, "jobs", made({"template": template(ONCE, OURS)}), "sluice.dev/engine"),
    Row(
        "a CronJob's Jobs",
        BATCH,
        "cronjobs",
        cron({"template": template(ONCE)}, {"annotations": CLAIM}),
        "sluice.dev/claim",
    ),
    Row("a CronJob's pods", BATCH, "cronjobs", cron({"template": template(ONCE, OURS)}), "sluice.dev/engine"),
    Row("a Deployment", APPS, "deployments", made(run(template(CONTAINERS)), OURS), "sluice.dev/engine"),
    Row("a Deployment's template", APPS, "deployments", made(run(MARKED)), "sluice.dev/engine"),
    Row("a ReplicaSet's template", APPS, "replicasets", made(run(MARKED)), "sluice.dev/engine"),
    Row("a StatefulSet's template", APPS, "statefulsets", made(run(MARKED, serviceName="x")), "sluice.dev/engine"),
    Row("a DaemonSet's template", APPS, "daemonsets", made(run(MARKED)), "sluice.dev/engine"),
    Row(
        "a ReplicationController's template",
        *(CORE, "replicationcontrollers", made({"selector": PLAIN, "template": MARKED}), "sluice.dev/engine"),
    ),
    Row("a PodTemplate", CORE, "podtemplates", {**made(), "template": MARKED}, "sluice.dev/engine"),
    Row("a ResourceClaim", DRA, "resourceclaims", made(DEVICES, OURS), "sluice.dev/engine"),
    Row(
        "the ResourceClaims of a template",
        *(DRA, "resourceclaimtemplates", made({"metadata": {"labels": OURS}, "spec": DEVICES}), "sluice.dev/engine"),
    ),
    Row(
        "a job's record",
        *(SLUICE, "finetunejobs", {**FINE_TUNE_JOB, **made(JOB_SPEC, None, OUTCOMES)}, "sluice.dev/outcomes"),
    ),
    Row("a pod's priority", CORE, "pods", made({**CONTAINERS, **TAKEN}), "PriorityClass sluice-training"),
    Row(
        "a Job's priority", BATCH, "jobs", made({"template": template(ONCE, **TAKEN)}), "PriorityClass sluice-training"
    ),
    Row(
        "a CronJob's priority",
        *(BATCH, "cronjobs", cron({"template": template(ONCE, **TAKEN)}), "PriorityClass sluice-training"),
    ),
    Row(
        "a Deployment's priority",
        *(APPS, "deployments", made(run(template(CONTAINERS, **TAKEN))), "PriorityClass sluice-training"),
    ),
    Row(
        "a PodTemplate's priority",
        CORE,
        "podtemplates",
        {**made(), "template": template(CONTAINERS, **TAKEN)},
        "PriorityClass",
    ),
    Row("a pod's node", CORE, "pods", made({**GPU, **PLACED}), "spec.nodeName"),
    Row("a Job's node", BATCH, "jobs", made({"template": template(GPU, **PLACED, restartPolicy="Never")}), "nodeName"),
    Row("a Deployment's node", APPS, "deployments", made(run(template(GPU, **PLACED))), "spec.nodeName"),
]


@pytest_asyncio.fixture
async def user(control_plane: ControlPlane, kube: Kube, policy: bool) -> AsyncIterator[Tenant]:
    """Who has `edit`, and what some are given beside it."""
    async with tenant(control_plane, kube, f"admission-{free_port()}") as made:
        await made.is_given({"apiGroups": [""], "resources": ["podtemplates"], "verbs": ["create"]})
        subresources = ["pods/ephemeralcontainers", "pods/resize"]
        await made.is_given({"apiGroups": [""], "resources": subresources, "verbs": ["patch"]})
        yield made


async def test_admission_policy_refuses_sluice_keys_of_users(user: Tenant, policy: bool) -> None:
    """Without the policy each of these objects is accepted: it is the policy that refuses them, and nothing else."""
    answers = {row: await user.does("POST", user.path(row.group, row.plural) + "?dryRun=All", row.body) for row in ROWS}
    if not policy:
        assert {str(row): answer for row, answer in answers.items() if answer} == {}
        return
    for row, answer in answers.items():
        assert ": 403 " in answer, f"{row}: {answer or 'accepted'}"
        assert row.said in answer, row


MAIN = {"name": "main", "image": "nothing", "resources": {"requests": {"cpu": "2m"}}}
OWN: dict[str, tuple[str, str, Body]] = {
    "deployments": (APPS, "slot", {**run(template(CONTAINERS, OURS), replicas=1), "selector": {"matchLabels": OURS}}),
    "jobs": (BATCH, "train", {"template": template(ONCE)}),
    "pods": (CORE, "trainer", {"containers": [MAIN], "schedulingGates": [{"name": "sluice.dev/claim"}]}),
}
"""What Sluice has made, in short."""
SMALL = {"resources": {"requests": {"cpu": "1m"}}}
NOTE = {"metadata": {"annotations": {"note": "x"}}}
DEBUGGER = {"spec": {"ephemeralContainers": [{"name": "debugger", "image": "nothing"}]}}
REFUSED: dict[str, tuple[str, Body, str]] = {
    "a key is set": (
        "deployments/slot", {"metadata": {"annotations": {"sluice.dev/restarted-at": "x"}}}, "sluice.dev/restarted-at",
    ),
    "a key is changed": ("jobs/train", {"metadata": {"annotations": {"sluice.dev/claim": "x"}}}, "sluice.dev/claim"),
    "a key is removed": ("pods/trainer", {"metadata": {"labels": {"sluice.dev/engine": None}}}, "sluice.dev/engine"),
    "a slot is scaled": ("deployments/slot/scale", {"spec": {"replicas": 5}}, "its spec is Sluice's"),
    "a slot is changed": ("deployments/slot", {"spec": {"replicas": 5}}, "its spec is Sluice's"),
    "a training Job is suspended": ("jobs/train", {"spec": {"suspend": True}}, "its spec is Sluice's"),
    "a trainer's gate is opened": ("pods/trainer", {"spec": {"schedulingGates": None}}, "its spec is Sluice's"),
    "a trainer is resized": (
        "pods/trainer/resize", {"spec": {"containers": [{"name": "main", **SMALL}]}}, "its spec is Sluice's",
    ),
    "a stranger gets a key": ("deployments/own", {"metadata": {"labels": OURS}}, "sluice.dev/engine"),
    "a stranger's template gets a key": (
        "deployments/own", {"spec": {"template": {"metadata": {"annotations": CLAIM}}}}, "sluice.dev/claim",
    ),
    "a stranger's template gets a priority": (
        "deployments/own", {"spec": {"template": {"spec": TAKEN}}}, "PriorityClass",
    ),
}  # fmt: skip
ALLOWED: dict[str, tuple[str, Body]] = {
    "a note on a slot": ("deployments/slot", NOTE),
    "a note on a training Job": ("jobs/train", NOTE),
    "a note on a trainer": ("pods/trainer", NOTE),
    # As the garbage collector does, and who deletes a namespace.
    "a slot's finalizer": ("deployments/slot", {"metadata": {"finalizers": ["example.com/x"]}}),
    "a training Job's finalizer": ("jobs/train", {"metadata": {"finalizers": ["example.com/x"]}}),
    "a trainer's owner": ("pods/trainer", {"metadata": {"ownerReferences": None}}),
    "a debugger beside a trainer": ("pods/trainer/ephemeralcontainers", DEBUGGER),
    "one's own is scaled": ("deployments/own/scale", {"spec": {"replicas": 2}}),
    "one's own is changed": ("deployments/own", {"spec": {"template": {"metadata": {"labels": {"team": "x"}}}}}),
}
STRATEGIC = "application/strategic-merge-patch+json"


async def test_admission_policy_refuses_changes_of_sluices_objects(user: Tenant, policy: bool) -> None:
    """People may note things, look into pods and delete; and what is their own is theirs."""
    for plural, (group, name, spec) in OWN.items():
        body = {"metadata": {"name": name, "labels": OURS, "annotations": CLAIM}, "spec": spec}
        await user.admin.call("POST", user.path(group, plural), body)
    own = {"metadata": {"name": "own"}, "spec": run(template(CONTAINERS), replicas=0)}
    assert not await user.does("POST", user.path(APPS, "deployments"), own)
    assert not await user.does("POST", user.path(CORE, "pods") + "?dryRun=All", made({**CONTAINERS, **PLACED}))
    bound = {"metadata": {"name": "bound"}, "spec": {**GPU, **PLACED}}
    await user.admin.call("POST", user.path(CORE, "pods"), bound)
    merge = "application/merge-patch+json"
    assert not await user.does("PATCH", user.path(CORE, "pods", "bound"), {"metadata": {"labels": PLAIN}}, merge)

    async def tries(what: str, body: Body) -> str:
        plural, _, rest = what.partition("/")
        return await user.does("PATCH", user.path(OWN[plural][0], plural, rest) + "?dryRun=All", body, STRATEGIC)

    assert {title: answer for title, row in ALLOWED.items() if (answer := await tries(*row))} == {}
    answers = {title: await tries(where, body) for title, (where, body, _) in REFUSED.items()}
    if not policy:
        assert {title: answer for title, answer in answers.items() if answer} == {}
    for title, (_, _, said) in REFUSED.items() if policy else ():
        assert ": 403 " in answers[title], f"{title}: {answers[title] or 'accepted'}"
        assert said in answers[title], title
    for plural, (group, name, _) in OWN.items():
        assert not await user.does("DELETE", user.path(group, plural, name)), f"{plural} can't be deleted"


async def test_admission_policy_refuses_too_many_keys_at_once(user: Tenant, policy: bool) -> None:
    """To look at each key takes the API server a time that grows by the square: 17 s for these, and none to count them.

    Who only takes a finalizer off what was there before is no reason to judge it.
    """
    many = {f"k{number}": "" for number in range(60_000)}
    answer = await user.does(
        "POST", user.path(CORE, "podtemplates") + "?dryRun=All", {**made(), "template": template(CONTAINERS, many)}
    )
    assert ("more than 2000" in answer and ": 403 " in answer) if policy else not answer
    there = {
        "metadata": {"name": "many", "annotations": dict(list(many.items())[:3000]), "finalizers": ["example.com/x"]}
    }
    await user.admin.call("POST", user.path(CORE, "pods"), {**there, "spec": CONTAINERS})
    merge, place = "application/merge-patch+json", user.path(CORE, "pods", "many")
    assert bool(await user.does("PATCH", place, {"metadata": {"annotations": {"one": "more"}}}, merge)) is policy
    assert not await user.does("PATCH", place, {"metadata": {"finalizers": None}}, merge)


async def test_admission_policy_lets_controllers_copy_templates(user: Tenant) -> None:
    """Pods of Jobs and ReplicaSets, ReplicaSets of Deployments, ResourceClaims of their templates."""
    from_template = {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "gpus"}]}
    bodies: dict[str, Body] = {
        "deployments": {"metadata": {"name": "slot"}, "spec": run(template(CONTAINERS, OURS), replicas=1)},
        "jobs": {"metadata": {"name": "train"}, "spec": {"template": template(ONCE, OURS)}},
        "resourceclaimtemplates": {
            "metadata": {"name": "gpus"},
            "spec": {"metadata": {"labels": OURS}, "spec": DEVICES},
        },
        "pods": {"metadata": {"name": "trainer", "labels": OURS}, "spec": {**CONTAINERS, **from_template}},
    }
    for plural, body in bodies.items():
        group = {"resourceclaimtemplates": DRA}.get(plural) or OWN[plural][0]
        await user.admin.call("POST", user.path(group, plural), body)

    async def copied() -> bool:
        where = {"pods": CORE, "replicasets": APPS, "resourceclaims": DRA}
        found = [await user.kube.call("GET", user.path(group, plural)) for plural, group in where.items()]
        marked = [[i for i in listed["items"] if OURS.items() <= i["metadata"]["labels"].items()] for listed in found]
        return [len(items) for items in marked] == [3, 1, 1]

    await until(copied)


async def test_helm_test_reports_whether_the_admission_policy_works(
    control_plane: ControlPlane, kube: Kube, policy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    place = f"/api/v1/namespaces/{RELEASE}/serviceaccounts/sluice-test/token"
    (tmp_path / "token").write_text((await kube.call("POST", place, body))["status"]["token"])
    (tmp_path / "namespace").write_text(RELEASE)
    (tmp_path / "ca.crt").write_text(control_plane.authority.pair.certificate.read_text())
    host, port = control_plane.server.removeprefix("https://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    script = runpy.run_path(str(CHART / "files" / "check_install.py"), {})
    script["asked"].__globals__["ACCOUNT"] = tmp_path
    assert await asyncio.to_thread(script["missing_kinds"]) == ""
    said = await asyncio.to_thread(script["unguarded"], "sluice")
    assert said == "" if policy else said.startswith("the admission policy sluice is missing or does nothing: ")
