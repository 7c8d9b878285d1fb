"""From JSON to views: what counts, how it is counted, and that nothing that comes in can stop the operator."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.finetunejob import FineTuneJob
from sluice_api.stages import Stage
from sluice_operator.observe.parse import WATCHED, Unreadable, parse
from sluice_operator.observe.parse_pod import effective_requests, parse_pod
from sluice_operator.observe.views import (
    NodeRequirement,
    NodeView,
    Owner,
    PodView,
    SlotView,
    StageJobView,
    Termination,
    VolumeClaimView,
    VolumeView,
)
from tests.unit.operator.bodies import body, finetunejob, owner, pod, read, stage_job

GI = 2**30


def container(cpu: str = "0", memory: str = "0", **more: str) -> dict[str, Any]:
    requests = {"cpu": cpu, "memory": memory, **{name.replace("_", "/"): value for name, value in more.items()}}
    return {"resources": {"requests": requests}}


@pytest.mark.parametrize(
    ("rule", "spec", "expected"),
    [
        ("containers add up", {"containers": [container("100m", "1Gi"), container("0.2", "512Mi")]}, (300, 1.5)),
        (
            "an init container runs alone: the larger counts",
            {"containers": [container("1", "1Gi")], "initContainers": [container("500m", "4Gi")]},
            (1000, 4),
        ),
        (
            "a sidecar runs with the containers",
            {"containers": [container("1")], "initContainers": [{**container("500m"), "restartPolicy": "Always"}]},
            (1500, 0),
        ),
        (
            "a sidecar runs with the init containers after it",
            {
                "containers": [container("100m")],
                "initContainers": [{**container("1"), "restartPolicy": "Always"}, container("2")],
            },
            (3000, 0),
        ),
        (
            "but not with those before it",
            {
                "containers": [container("100m")],
                "initContainers": [container("2"), {**container("1"), "restartPolicy": "Always"}],
            },
            (2000, 0),
        ),
        (
            "the runtime's overhead comes on top",
            {"containers": [container("1", "1Gi")], "overhead": {"cpu": "250m", "memory": "1Gi"}},
            (1250, 2),
        ),
        (
            "a pod-level request replaces the containers'",
            {"containers": [container("1", "1Gi")], "resources": {"requests": {"cpu": "4"}}},
            (4000, 1),
        ),
    ],
)
def test_effective_requests_of_a_pod(rule: str, spec: dict[str, Any], expected: tuple[int, float]) -> None:
    taken = effective_requests(spec)
    assert (taken["cpu"], taken["memory"] / GI) == expected, rule


def test_effective_requests_include_gpus() -> None:
    assert effective_requests({"containers": [container(**{"nvidia.com_gpu": "2"})]})["nvidia.com/gpu"] == 2


def test_slot_pod_has_its_template_digest() -> None:
    metadata = {"labels": {"sluice.dev/engine": "chat"}, "annotations": {"sluice.dev/template": "4f1c2a9be07d3358"}}
    assert parse_pod(pod("p", 7, node="n1", metadata=metadata)).template == "4f1c2a9be07d3358"


def test_trainer_pod_is_parsed() -> None:
    metadata = {
        "labels": {"sluice.dev/job": "j"},
        "annotations": {"sluice.dev/bound-at": "2026-01-01T00:00:05.5Z"},
        "ownerReferences": owner("Job", "t"),
        "deletionTimestamp": "2026-01-01T00:01:00Z",
    }
    raw = pod("p", 7, node="n1", phase="Failed", metadata=metadata)
    raw["spec"]["schedulingGates"] = [{"name": "sluice.dev/claim"}]
    raw["spec"]["volumes"] = [
        {"name": "v", "persistentVolumeClaim": {"claimName": "models"}},
        {"name": "own", "ephemeral": {}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "data", "ephemeral": {"volumeClaimTemplate": {}}},
    ]
    ended = {"exitCode": 75, "reason": "Error", "message": "saved", "finishedAt": "2026-01-01T00:01:02Z"}
    raw["status"] |= {
        "nominatedNodeName": "n1",
        "conditions": [
            {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"},
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"},
            {"type": "Ready", "status": "True"},
        ],
        "containerStatuses": [
            {"name": "other", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}},
            {"name": "trainer", "state": {"terminated": ended}},
        ],
    }
    view = read(raw)
    assert isinstance(view, PodView)
    assert (view.owner, view.deleting, view.ended, view.ready) == (Owner("Job", "t", "uid-t"), True, True, True)
    assert (view.node, view.nominated_node, view.gates) == ("n1", "n1", ("sluice.dev/claim",))
    assert view.bound_at == datetime(2026, 1, 1, 0, 0, 5, 500_000, UTC)
    assert (view.waiting_reason, view.waiting_message) == ("ImagePullBackOff", "no such image")
    assert (view.unschedulable, view.disruption) == ("0/1 nodes", "EvictionByEvictionAPI")
    assert view.volume_claims == ("models", "p-data")
    assert view.termination == Termination(75, "Error", "saved", datetime(2026, 1, 1, 0, 1, 2, tzinfo=UTC))
    assert (view.started, view.failure) == (True, "")


REFUSED = "UnexpectedAdmissionError: Allocate failed"


@pytest.mark.parametrize(
    ("phase", "status", "failure", "started"),
    [
        ("Failed", {}, REFUSED, False),
        ("Failed", {"containerStatuses": [{"state": {"waiting": {}}}]}, REFUSED, False),
        ("Failed", {"containerStatuses": [{"lastState": {"terminated": {"exitCode": 1}}}]}, REFUSED, True),
        ("Failed", {"initContainerStatuses": [{"state": {"running": {"startedAt": "x"}}}]},
         REFUSED, True),
        ("Pending", {}, "", False),
    ],
)  # fmt: skip
def test_pod_that_the_kubelet_refuses_has_failure_and_started(
    phase: str, status: dict[str, Any], failure: str, started: bool
) -> None:
    raw = pod("p", 7, node="n1", phase=phase, metadata={"labels": {"sluice.dev/job": "j"}})
    raw["status"] |= {**status, "reason": "UnexpectedAdmissionError", "message": "Allocate failed"}
    view = read(raw)
    assert isinstance(view, PodView)
    assert (view.failure, view.started) == (failure, started)


FAILED = {"terminated": {"exitCode": 1, "message": "No Secret."}}
AT_WORK = {"running": {"startedAt": "x"}}


@pytest.mark.parametrize(
    ("state", "last", "fetches", "failure"),
    [
        ({"waiting": {"reason": "PodInitializing"}}, {}, False, ""),
        (AT_WORK, {}, True, ""),
        ({"terminated": {"exitCode": 0, "message": "x"}}, FAILED, False, ""),
        (FAILED, {}, False, "No Secret."),
        ({"waiting": {"reason": "CrashLoopBackOff"}}, FAILED, False, "No Secret."),
        (AT_WORK, {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, True, "OOMKilled"),
    ],
)
def test_container_that_fetches_the_model(state: Any, last: Any, fetches: bool, failure: str) -> None:
    raw = pod("chat-0", 1, metadata={"labels": {"sluice.dev/engine": "chat"}})
    container = {"name": "model", "state": state, "lastState": last}
    raw["status"]["initContainerStatuses"] = [container, {"name": "agent"}]
    view = parse_pod(raw)
    assert (view.fetches_model, view.fetch_failure) == (fetches, failure)


@pytest.mark.parametrize(("state", "running"), [({"running": {"startedAt": "x"}}, True), ({"waiting": {}}, False)])
def test_engine_pod_runs_when_its_vllm_container_runs(state: dict[str, Any], running: bool) -> None:
    raw = pod("p", 7, metadata={"labels": {"sluice.dev/engine": "chat", "sluice.dev/slot": "0"}})
    raw["status"] |= {
        "initContainerStatuses": [{"name": "agent", "state": {"running": {}}}],
        "containerStatuses": [{"name": "vllm", "state": state}],
    }
    view = read(raw)
    assert isinstance(view, PodView)
    assert view.running is running
    assert view.waiting_reason == ""


@pytest.mark.parametrize(("given", "in_time"), [(None, None), (5, None), (30, None), (31, 30), (10**6, 30)])
def test_in_time_is_set_if_the_deletion_grace_period_is_longer(given: int | None, in_time: int | None) -> None:
    raw = pod("p", 1, metadata={"labels": {"sluice.dev/job": "j"}})
    raw["metadata"]["deletionGracePeriodSeconds"] = given
    raw["spec"]["terminationGracePeriodSeconds"] = 30
    assert parse_pod(raw).in_time == in_time


@pytest.mark.parametrize(
    ("grace", "metadata", "at_once"),
    [
        (0, {}, True),
        (30, {}, False),
        (0, {"deletionGracePeriodSeconds": 0}, True),
        (0, {"deletionGracePeriodSeconds": 600}, False),
        (30, {"deletionGracePeriodSeconds": 0}, True),
        (0, {"finalizers": ["example.com/mine"]}, False),
    ],
)
def test_goes_at_once_needs_a_grace_period_of_zero(grace: int, metadata: dict[str, Any], at_once: bool) -> None:
    raw = pod("p", 1, metadata={"labels": {"sluice.dev/job": "j"}})
    raw["metadata"] |= metadata
    raw["spec"]["terminationGracePeriodSeconds"] = grace
    assert parse_pod(raw).goes_at_once is at_once


def test_stage_job_is_parsed_with_its_claim() -> None:
    raw = stage_job("j", 3, borrows=(("chat", 1),))
    raw["status"] = {
        "conditions": [
            {"type": "FailureTarget", "status": "True"},
            {
                "type": "Failed",
                "status": "True",
                "reason": "BackoffLimitExceeded",
                "message": "Job has failed",
                "lastTransitionTime": "2026-01-01T01:00:00Z",
            },
        ]
    }
    view = read(raw)
    assert isinstance(view, StageJobView)
    assert (view.stage, view.attempt, view.finished) == (Stage.TRAIN, 1, "Failed")
    assert view.failure == "BackoffLimitExceeded: Job has failed"
    assert view.finished_at == datetime(2026, 1, 1, 1, tzinfo=UTC)
    assert view.claim is not None
    assert [str(slot) for slot in view.claim.borrowed] == ["chat/1"]


def test_stage_job_is_not_finished_while_its_pods_end() -> None:
    raw = stage_job("j", 3)
    raw["status"] = {"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}]}
    view = read(raw)
    assert isinstance(view, StageJobView)
    assert (view.finished, view.finished_at) == ("", None)


def test_slots_nodes_and_volumes_are_parsed() -> None:
    labels = {"sluice.dev/engine": "chat", "sluice.dev/slot": "1"}
    slot = read(body("Deployment", "chat-1", 1, metadata={"labels": labels}, spec={"replicas": 0}))
    assert isinstance(slot, SlotView)
    assert (slot.engine, slot.index, slot.size) == ("chat", 1, 0)

    node = read(
        body(
            "Node",
            "n1",
            1,
            namespace="",
            spec={"unschedulable": True, "taints": [{"key": "gpu", "effect": "NoSchedule"}]},
            status={
                "allocatable": {"cpu": "7910m", "memory": "64Gi", "nvidia.com/gpu": "8"},
                "conditions": [{"type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-01-01T00:02:00Z"}],
            },
        )
    )
    assert isinstance(node, NodeView)
    assert node.allocatable == {"cpu": 7910, "memory": 64 * GI, "nvidia.com/gpu": 8}
    assert (node.ready, node.cordoned, node.taints[0].key) == (False, True, "gpu")
    assert node.not_ready_since == datetime(2026, 1, 1, 0, 2, tzinfo=UTC)

    claim = read(
        body(
            "PersistentVolumeClaim",
            "models",
            1,
            spec={"volumeName": "pv-1", "accessModes": ["ReadWriteOnce"]},
            status={"phase": "Bound"},
        )
    )
    assert isinstance(claim, VolumeClaimView)
    assert (claim.bound, claim.volume, claim.access_modes) == (True, "pv-1", ("ReadWriteOnce",))

    requirement = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}
    affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}}
    volume = read(body("PersistentVolume", "pv-1", 1, namespace="", spec={"nodeAffinity": affinity}))
    assert isinstance(volume, VolumeView)
    assert volume.node_terms == ((NodeRequirement("kubernetes.io/hostname", "In", ("n1",)),),)


def test_unreadable_status_counts_as_lost() -> None:
    raw = finetunejob("j", 1)
    raw["status"] = {"conditions": [{"type": "Prepared"}]}
    view = read(raw)
    assert isinstance(view, FineTuneJob)
    assert view.status.conditions == ()


def test_a_field_of_a_newer_version_is_left_out() -> None:
    raw = finetunejob("j", 1)
    raw["spec"]["brandNew"] = raw["spec"]["resources"]["brandNew"] = 1
    view = read(raw)
    assert isinstance(view, FineTuneJob)
    assert view.spec.resources.gpus == 1


BOUND_AT, RESTARTED_AT, CLAIM = "sluice.dev/bound-at", "sluice.dev/restarted-at", "sluice.dev/claim"
NO_TIMES = ["2026-01-01", "2026-01-01T00:00:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "soon", "x" * 250_000]


@pytest.mark.parametrize("text", NO_TIMES)
def test_invalid_time_is_none(text: str) -> None:
    """Else the object would be set aside as it last was: a pod that is on its node by now, say."""
    trainer = pod("p", 1, node="n1", metadata={"labels": {"sluice.dev/job": "j"}, "annotations": {BOUND_AT: text}})
    labels = {"sluice.dev/engine": "chat", "sluice.dev/slot": "1"}
    slot = body("Deployment", "chat-1", 1, metadata={"labels": labels, "annotations": {RESTARTED_AT: text}})
    bound, started = read(trainer), read(slot)
    assert isinstance(bound, PodView)
    assert isinstance(started, SlotView)
    assert (bound.node, bound.bound_at, started.restarted_at) == ("n1", None, None)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"gpus": 10**12}, "gpus"),
        ({"term": 2**64}, "term"),
        ({"places": [{"node": "n1", "pods": 10**12}]}, "places.0.pods"),
        ({"places": [{"node": "n1"}] * 65}, "places"),
        ({"places": [{"node": "n" * 254}]}, "places.0.node"),
        ({"places": [{"node": "n1", "beside": {"namespace": "a", "engine": "b", "index": 10_000}}]}, "beside.index"),
        ({"pool": "x" * 250_000}, "characters"),
    ],
)
def test_claim_larger_than_a_job_can_be_is_unreadable(change: dict[str, Any], error: str) -> None:
    raw = stage_job("j", 3)
    claim = {**json.loads(raw["metadata"]["annotations"][CLAIM]), **change}
    raw["metadata"]["annotations"][CLAIM] = json.dumps(claim)
    found = parse("Job", raw)
    assert isinstance(found, Unreadable)
    assert error in found.error


@pytest.mark.parametrize("attempt", ["0", "-1", "1000001", "x", "1" * 5000])
def test_invalid_attempt_number_is_unreadable(attempt: str) -> None:
    raw = stage_job("j", 3)
    raw["metadata"]["labels"]["sluice.dev/attempt"] = attempt
    assert isinstance(parse("Job", raw), Unreadable)


def test_annotations_and_labels_of_others_are_dropped() -> None:
    """Four thousand Adapters with a large annotation each would be more than the operator's memory."""
    notes = {"sluice.dev/outcomes": "{}", "a/b": "x" * 250_000, "kubectl.kubernetes.io/last-applied-configuration": "y"}
    job = read(finetunejob("j", 1, metadata={"annotations": notes, "labels": {"sluice.dev/job": "j", "app": "mine"}}))
    too_long = read(finetunejob("j", 1, metadata={"annotations": {"sluice.dev/outcomes": "x" * 65_537}}))
    assert isinstance(job, FineTuneJob)
    assert isinstance(too_long, FineTuneJob)
    assert (job.metadata.annotations, job.metadata.labels) == ({"sluice.dev/outcomes": "{}"}, {"sluice.dev/job": "j"})
    assert too_long.metadata.annotations == {}


def test_unreadable_object_names_the_field() -> None:
    raw = finetunejob("j", 9)
    raw["spec"]["resources"] = {"gpus": "many"}
    poison = parse("FineTuneJob", raw)
    assert isinstance(poison, Unreadable)
    assert (str(poison.key), poison.uid, poison.resource_version) == ("FineTuneJob/team/j", "uid-j", 9)
    assert "spec.resources.gpus" in poison.error


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("metadata", "spec", "status", "containers", "conditions", "labels", "annotations", "resources", "requests")
HOSTILE = st.recursive(
    JSON, lambda inner: st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4) | st.lists(inner, max_size=2)
)


def read_or_set_aside(kind: str, raw: Any) -> None:
    """What is set aside says of which kind it is, and why."""
    found = parse(kind, raw)
    if isinstance(found, Unreadable):
        assert found.key.kind == kind
        assert found.error


@given(kind=st.sampled_from(WATCHED), raw=HOSTILE)
def test_hostile_object_is_read_or_set_aside(kind: str, raw: Any) -> None:
    read_or_set_aside(kind, raw)


@given(field=st.sampled_from(("metadata", "spec", "status")), value=HOSTILE)
def test_a_good_object_with_one_hostile_part_is_read_or_set_aside(field: str, value: Any) -> None:
    for good in (stage_job("j", 1), pod("p", 1, node="n"), finetunejob("j", 1)):
        read_or_set_aside(good["kind"], {**good, field: value})
        part = {**good.get(field, {}), **(value if isinstance(value, dict) else {})}
        read_or_set_aside(good["kind"], {**good, field: part})
