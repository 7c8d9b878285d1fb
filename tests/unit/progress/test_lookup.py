"""A token's pod and its Deployment: what is asked of the API server, and what that may say."""

from dataclasses import replace
from typing import Any

import pytest

from sluice_operator.cluster.client import Api, Body
from sluice_operator.cluster.errors import ApiError
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Owner
from sluice_operator.progress.lookup import Lookup
from sluice_operator.progress.refusal import Refusal, Refused
from sluice_operator.progress.tokens import BoundPod
from tests.unit.operator.bodies import body, owner, pod
from tests.unit.progress.worlds import DEPLOYMENT, REPLICA

POD = BoundPod("team", "p", "uid-p")
LABELS = dict(REPLICA.labels)


def replica_set(**changes: Any) -> Body:
    """The one that REPLICA's owner names."""
    assert REPLICA.owner is not None
    metadata = {"ownerReferences": owner("Deployment", DEPLOYMENT.name, DEPLOYMENT.uid)}
    spec = {"selector": {"matchLabels": changes.pop("selects", LABELS)}}
    made = {"uid": REPLICA.owner.uid, "metadata": metadata, **changes}
    return body("ReplicaSet", REPLICA.owner.name, 1, spec=spec, **made)


class ApiServer(Api):
    """Says one thing, whatever is asked, and remembers what was."""

    def __init__(self, answer: Body | ApiError) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def request(self, method: str, path: str, **_: Any) -> Body:
        assert method == "GET"
        self.asked.append(path)
        if isinstance(self.answer, ApiError):
            raise self.answer
        return self.answer


async def test_pod_missing_from_the_store_is_looked_up() -> None:
    server = ApiServer(pod("p", 1))
    assert (await Lookup(Store(), server).pod(POD)).uid == POD.uid
    assert server.asked == ["/api/v1/namespaces/team/pods/p"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (ApiError(404, "NotFound", "no"), Refusal.DELETED_POD),
        (pod("p", 2, uid="another"), Refusal.DELETED_POD),
        (ApiError(500, "InternalError", "no"), Refusal.UNAVAILABLE),
        (ApiError(0, "Timeout", "no answer"), Refusal.UNAVAILABLE),
    ],
)
async def test_deleted_or_unavailable_pod_is_refused(answer: Body | ApiError, expected: Refusal) -> None:
    with pytest.raises(Refused) as refused:
        await Lookup(Store(), ApiServer(answer)).pod(POD)
    assert refused.value.refusal is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (replica_set(), DEPLOYMENT),
        (replica_set(uid="another"), None),
        (replica_set(selects={"app": "something-else"}), None),
        (replica_set(selects={}), None),
        (replica_set(metadata={"ownerReferences": owner("Rollout", "chat", "r")}), None),
        (replica_set(metadata={}), None),
        (ApiError(404, "NotFound", "no"), None),
    ],
)
async def test_deployment_of_a_pod_is_looked_up_once_by_its_replica_set(
    answer: Body | ApiError, expected: Owner | None
) -> None:
    server = ApiServer(answer)
    lookup = Lookup(Store(), server)
    assert [await lookup.deployment_of(REPLICA) for _ in range(2)] == [expected, expected]
    assert len(server.asked) == 1


async def test_unavailable_deployment_is_looked_up_again() -> None:
    server = ApiServer(ApiError(503, "ServiceUnavailable", "no"))
    lookup = Lookup(Store(), server)
    with pytest.raises(Refused) as refused:
        await lookup.deployment_of(REPLICA)
    assert refused.value.refusal is Refusal.UNAVAILABLE
    server.answer = replica_set()
    assert await lookup.deployment_of(REPLICA) == DEPLOYMENT


@pytest.mark.parametrize("name", ["", ".", "..", "../../pods", "x?watch=1", "a/b", "Upper", "x%2Fy"])
async def test_invalid_owner_name_is_not_used_as_path(name: str) -> None:
    """A pod's owner is whatever its maker wrote."""
    server = ApiServer(replica_set())
    assert await Lookup(Store(), server).deployment_of(replace(REPLICA, owner=Owner("ReplicaSet", name, "rs"))) is None
    assert server.asked == []
