"""Devices that DRA serves (resource.k8s.io/v1): what drivers offer on nodes, and what ResourceClaims have of them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sluice_operator.observe.raw import Body, metadata_of
from sluice_operator.observe.views import DeviceClaimView, SliceView

DEVICES = ("ResourceSlice", "ResourceClaim")
"""The kinds of DRA. Not every cluster has them."""

_GPU = "gpu"
_NODE = "metadata.name"


def parse_slice(body: Body) -> SliceView:
    """Read a ResourceSlice. Of its devices only the number of whole GPUs is kept."""
    spec = body["spec"]
    driver, pool = str(spec["driver"]), spec["pool"]
    return SliceView(
        **metadata_of("ResourceSlice", body),
        node=spec.get("nodeName") or "",
        driver=driver,
        pool=str(pool["name"]),
        generation=int(pool.get("generation") or 0),
        devices=sum(1 for device in spec.get("devices") or () if _is_gpu(device, driver)),
    )


def _is_gpu(device: Mapping[str, Any], driver: str) -> bool:
    """Whether a device is a whole GPU, not a part of one that is offered too. Without a type it counts as a GPU."""
    attributes: Mapping[str, Any] = device.get("attributes") or {}
    kind = attributes.get("type") or attributes.get(f"{driver}/type") or {}
    return str(kind.get("string", _GPU)) == _GPU


def parse_device_claim(body: Body) -> DeviceClaimView:
    """Read a ResourceClaim: what it asks for, which devices it has and where, and which pods use them."""
    status = body.get("status") or {}
    allocation = status.get("allocation") or {}
    results = (allocation.get("devices") or {}).get("results") or ()
    return DeviceClaimView(
        **metadata_of("ResourceClaim", body),
        asks=_asks(((body.get("spec") or {}).get("devices") or {}).get("requests") or ()),
        node=_node((allocation.get("nodeSelector") or {}).get("nodeSelectorTerms") or ()),
        # With adminAccess a claim only watches a device that another claim has.
        devices=Counter(str(result["driver"]) for result in results if not result.get("adminAccess")),
        pods=tuple(str(user["uid"]) for user in status.get("reservedFor") or () if user.get("resource") == "pods"),
    )


def _asks(requests: Iterable[Mapping[str, Any]]) -> tuple[str, int] | None:
    """Device class and number; None if it asks for anything else or more."""
    requests = tuple(requests)
    if len(requests) != 1 or not requests[0].get("exactly"):
        return None
    exactly = requests[0]["exactly"]
    return str(exactly["deviceClassName"]), int(exactly.get("count") or 1)


def _node(terms: Iterable[Mapping[str, Any]]) -> str:
    """The node of the allocated devices, as kube-scheduler writes it; empty if they belong to no single node."""
    for term in terms:
        for field in term.get("matchFields") or ():
            if field["key"] == _NODE and field["operator"] == "In" and len(field["values"]) == 1:
                return str(field["values"][0])
    return ""
