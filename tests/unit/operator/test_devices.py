"""ResourceSlices and ResourceClaims as they come in, and clusters that have none."""

from typing import Any

import pytest

from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.lists import look_for_dra, refresh_all
from sluice_operator.handlers.resync import Resync
from sluice_operator.observe.parse import WATCHED
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import DeviceClaimView, SliceView
from tests.unit.operator.bodies import Body, body, read

DRIVER = "gpu.nvidia.com"


def resource_slice(*devices: Body, name: str = "n1-slice", version: int = 1, **spec: Any) -> Body:
    pool = {"name": "n1", "generation": 2, "resourceSliceCount": 1}
    spec = {"driver": DRIVER, "nodeName": "n1", "pool": pool, "devices": list(devices), **spec}
    return body("ResourceSlice", name, version, namespace="", spec=spec)


def device(name: str, **attributes: str) -> Body:
    return {"name": name, "attributes": {key.replace("__", "/"): {"string": text} for key, text in attributes.items()}}


def resource_claim(name: str, version: int = 1, *, node: str = "", devices: int = 1, **more: Any) -> Body:
    requests = [{"name": "gpus", "exactly": {"deviceClassName": DRIVER, "count": devices}}]
    found = more.pop("requests", requests)
    status: Body = {}
    if node:
        results = [{"request": "gpus", "driver": DRIVER, "pool": node, "device": f"gpu-{n}"} for n in range(devices)]
        terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]
        status = {
            "allocation": {"devices": {"results": results}, "nodeSelector": {"nodeSelectorTerms": terms}},
            "reservedFor": [{"resource": "pods", "name": "p", "uid": "uid-p"}],
        }
    return body("ResourceClaim", name, version, spec={"devices": {"requests": found}}, status=status, **more)


def sliced(*args: Any, **more: Any) -> SliceView:
    view = read(resource_slice(*args, **more))
    assert isinstance(view, SliceView)
    return view


def claimed(raw: Body) -> DeviceClaimView:
    view = read(raw)
    assert isinstance(view, DeviceClaimView)
    return view


def test_resource_slice_counts_whole_gpus() -> None:
    view = sliced(
        device("gpu-0", type="gpu"),
        device("gpu-1", gpu__type="gpu"),
        {"name": "gpu-2"},
        {"name": "gpu-3", "attributes": {"gpu.nvidia.com/type": {"string": "gpu"}, "index": {"int": 3}}},
        device("mig-0", type="mig"),
        {"name": "mig-1", "attributes": {"gpu.nvidia.com/type": {"string": "mig"}}},
    )
    assert (view.driver, view.node, view.pool, view.generation, view.devices) == (DRIVER, "n1", "n1", 2, 4)


def test_resource_slice_without_node_or_devices_is_read() -> None:
    assert sliced(nodeName=None, allNodes=True).node == ""
    assert sliced(devices=None, sharedCounters=[{"name": "c", "counters": {}}]).devices == 0


def test_unallocated_resource_claim_has_no_devices() -> None:
    view = claimed(resource_claim("mine", devices=2))
    assert (view.asks, view.node, dict(view.devices), view.pods) == ((DRIVER, 2), "", {}, ())


def test_allocated_resource_claim_has_devices_node_and_pods() -> None:
    view = claimed(resource_claim("mine", devices=2, node="n1"))
    assert (view.node, dict(view.devices), view.pods) == ("n1", {DRIVER: 2}, ("uid-p",))


def test_device_with_admin_access_is_not_counted() -> None:
    raw = resource_claim("monitor", node="n1", devices=2)
    raw["status"]["allocation"]["devices"]["results"][0]["adminAccess"] = True
    assert dict(claimed(raw).devices) == {DRIVER: 1}


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [{"name": "a", "firstAvailable": [{"name": "b", "deviceClassName": DRIVER}]}],
        [{"name": n, "exactly": {"deviceClassName": DRIVER}} for n in "ab"],
    ],
)
def test_resource_claim_of_other_requests_asks_none(requests: list[Body]) -> None:
    assert claimed(resource_claim("theirs", requests=requests)).asks is None


def test_world_indexes_dra_devices_by_node_and_engine() -> None:
    slot = {"labels": {"sluice.dev/engine": "chat", "sluice.dev/slot": "0"}}
    bodies = [
        resource_slice(device("gpu-0")),
        resource_claim("chat-0-gpus", 2, node="n1", metadata=slot),
        resource_claim("theirs", 3),
    ]
    store = Store()
    for order in (bodies, bodies[::-1]):
        store = Store()
        for raw in order:
            store.put(read(raw), seen=True)
        world = store.world()
        assert [view.devices for view in world.slices_on["n1"].values()] == [1]
        assert [key.name for key in world.device_claims_on["n1"]] == ["chat-0-gpus"]
        assert [key.name for key in world.slot_devices["team", "chat"]] == ["chat-0-gpus"]
    store.put(read(resource_claim("chat-0-gpus", 4, metadata=slot)), seen=True)
    assert "n1" not in store.world().device_claims_on


class Discovery:
    """An API server that serves some resources of resource.k8s.io/v1, or has never heard of it."""

    def __init__(self, *served: str, status: int = 200) -> None:
        self.served = served
        self.status = status
        self.listed: list[str] = []

    async def request(self, _method: str, path: str, **_: Any) -> Body:
        if path != "/apis/resource.k8s.io/v1":
            self.listed.append(path.rpartition("/")[2])
            return {"items": [], "metadata": {"resourceVersion": "1"}}
        if self.status != 200:
            raise ApiError(self.status, "No", "no")
        return {"resources": [{"name": name} for name in self.served]}


@pytest.mark.parametrize(
    ("server", "serves"),
    [
        (Discovery("deviceclasses", "resourceclaims", "resourceslices"), True),
        (Discovery("deviceclasses"), False),
        (Discovery(status=404), False),
    ],
)
async def test_dra_is_watched_only_if_the_cluster_serves_it(server: Discovery, serves: bool) -> None:
    store = Store()
    await look_for_dra(server, store)  # type: ignore[arg-type]
    assert (store.serves_dra, store.world().serves_dra) == (serves, serves)
    assert set(WATCHED) - set(store.watched) == (set() if serves else {"ResourceSlice", "ResourceClaim"})
    await refresh_all(server, store)  # type: ignore[arg-type]
    assert ("resourceslices" in server.listed) is serves
    resync = Resync(server, store, 3600)  # type: ignore[arg-type]
    assert not resync.is_primed
    resync._never_listed -= {kind for kind in WATCHED if kind not in ("ResourceSlice", "ResourceClaim")}
    assert resync.is_primed is not serves


async def test_dra_stays_on_when_discovery_fails() -> None:
    store = Store()
    with pytest.raises(ApiError):
        await look_for_dra(Discovery(status=503), store)  # type: ignore[arg-type]
    assert store.serves_dra
