"""Nothing that is there already is taken over, but for what is ours."""

from typing import Any

import pytest

from sluice_operator.cluster.errors import ApiError, NameTaken, Outdated
from sluice_operator.cluster.ownership import require_ours
from sluice_operator.manifests.trust import trust
from sluice_operator.observe.views import Key

Body = dict[str, Any]

CHAT = {"kind": "InferenceEngine", "name": "chat", "uid": "1"}


def body(owner: Body | None = None, job: str = "", **metadata: Any) -> Body:
    """An object; `job` is the label that says whose it is."""
    owners = [{**owner, "controller": True}] if owner else []
    labels = {"sluice.dev/job": job} if job else {}
    return {"metadata": {"name": "x", "ownerReferences": owners, "labels": labels, **metadata}}


@pytest.mark.parametrize(
    ("rule", "kind", "manifest", "there"),
    [
        ("one that it controls is ours", "Service", body(CHAT), body(CHAT)),
        ("whatever labels it had before", "Service", body(CHAT, "new-in-this-version"), body(CHAT)),
        ("an Adapter has no owner: its label says whose it is", "Adapter", body(job="a"), body(job="a")),
        ("a stage's Job is found by its labels", "Job", body(CHAT, "a"), body(CHAT, "a")),
    ],
)
def test_require_ours_accepts_our_own_object(rule: str, kind: str, manifest: Body, there: Body) -> None:
    require_ours(Key(kind, "team", "x"), manifest, there)


KUBECTL = [{"manager": "helm", "time": "2026-02-01"}, {"manager": "kubectl-create", "time": "2026-01-01"}]


@pytest.mark.parametrize(
    ("rule", "kind", "manifest", "there", "says"),
    [
        ("a person's", "Service", body(CHAT), body(managedFields=KUBECTL), "was made by kubectl-create"),
        ("one of an unknown maker", "Role", body(CHAT), body(), "is not Sluice's"),
        (
            "another engine's",
            "Service",
            body(CHAT),
            body({**CHAT, "name": "db", "uid": "2"}),
            "belongs to InferenceEngine db",
        ),
        ("another kind's of the same name", "Role", body(CHAT), body({**CHAT, "kind": "X", "uid": "2"}), "X chat"),
        ("one that only looks like ours", "Service", body(CHAT, "a"), body(job="a"), "is not Sluice's"),
        ("another job's Adapter", "Adapter", body(job="a"), body(job="b"), "is not Sluice's"),
        ("an Adapter that somebody controls", "Adapter", body(job="a"), body(CHAT, "a"), "belongs to InferenceEng"),
        ("a person's ConfigMap", "ConfigMap", trust("team", b"ours"), body(managedFields=KUBECTL), "by kubectl-create"),
        ("a Job that nobody would find", "Job", body(CHAT, "a"), body(CHAT), "belongs to InferenceEngine chat"),
        ("one that never goes", "Service", body(CHAT), body({**CHAT, "uid": "0"}, deletionTimestamp="now"), "belongs"),
    ],
)
def test_require_ours_raises_name_taken_for_objects_of_others(
    rule: str, kind: str, manifest: Body, there: Body, says: str
) -> None:
    with pytest.raises(NameTaken) as taken:
        require_ours(Key(kind, "team", "x"), manifest, there)
    assert f"{kind} x is there already, and" in taken.value.message, rule
    assert says in taken.value.message, rule
    assert "Delete it" in taken.value.message
    assert taken.value.is_refusal


def test_require_ours_waits_for_the_object_of_a_deleted_owner() -> None:
    """An engine that was deleted and created anew."""
    with pytest.raises(Outdated, match="the InferenceEngine chat before"):
        require_ours(Key("Service", "team", "x"), body(CHAT), body({**CHAT, "uid": "0"}))


@pytest.mark.parametrize(
    ("status", "reason", "message", "lasts"),
    [
        (403, "Forbidden", "exceeded quota: count/jobs.batch", True),
        (422, "Invalid", "ValidatingAdmissionPolicy denied request", True),
        (400, "BadRequest", 'admission webhook "x" denied the request', True),
        (500, "InternalError", 'failed calling webhook "x": connection refused', True),
        (500, "InternalError", "etcdserver: leader changed", False),
        (503, "ServiceUnavailable", "", False),
        (429, "TooManyRequests", "", False),
        (409, "Conflict", "resourcequotas: the object has been modified", False),
        (404, "NotFound", "", False),
        (401, "Unauthorized", "", False),
        (0, "Timeout", "no answer", False),
    ],
)
def test_api_error_is_refusal_if_it_lasts_until_a_change(status: int, reason: str, message: str, lasts: bool) -> None:
    error = ApiError(status, reason, message)
    assert error.is_refusal is lasts
    assert not (error.is_refusal and error.is_passing), "others would wait while it is asked again at once"
