"""Devices without a driver: what one would publish for nodes without a kubelet, and who has them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sluice_api.meta import API_VERSION
from tests.integration.history import SLUICE
from tests.integration.nodes import MERGE_PATCH, Nodes
from tests.integration.progress_scene import Kube

Body = dict[str, Any]
DRA = "/apis/resource.k8s.io/v1"


@dataclass
class Devices:
    """Nodes of one pool of mode DRA, in a cluster in which others may have the same names."""

    kube: Kube
    namespace: str

    @property
    def driver(self) -> str:
        """The driver, the DeviceClass and, but for its dot, the pool."""
        return f"gpu.{self.namespace}"

    @property
    def pool(self) -> str:
        """The pool of these nodes."""
        return f"devices-{self.namespace}"

    async def set_mode(self, mode: str) -> None:
        """Another way in which the pool counts."""
        body = {"spec": {"sharing": {"mode": mode}}}
        await self.kube.call("PATCH", f"{SLUICE}/gpupools/{self.pool}", body, MERGE_PATCH)

    async def claims(self) -> dict[str, Body]:
        """The ResourceClaims of the namespace, by name."""
        found = await self.kube.call("GET", f"{DRA}/namespaces/{self.namespace}/resourceclaims")
        return {item["metadata"]["name"]: item for item in found["items"]}

    async def stranger(self, name: str) -> None:
        """Somebody's pod with a ResourceClaim of its own."""
        place = f"{DRA}/namespaces/{self.namespace}/resourceclaims"
        exactly = {"deviceClassName": self.driver, "allocationMode": "ExactCount", "count": 1}
        spec: Body = {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}
        await self.kube.call("POST", place, {"metadata": {"name": name}, "spec": spec})
        container = {"name": "main", "image": "nothing", "resources": {"claims": [{"name": "gpu"}]}}
        spec = {"containers": [container], "resourceClaims": [{"name": "gpu", "resourceClaimName": name}]}
        await self.kube.call(
            "POST", f"/api/v1/namespaces/{self.namespace}/pods", {"metadata": {"name": name}, "spec": spec}
        )


@asynccontextmanager
async def devices(kube: Kube, namespace: str, nodes: Nodes, gpus: int, *names: str) -> AsyncIterator[Devices]:
    """Nodes with so many GPUs each, their DeviceClass, and a pool that counts them."""
    made = Devices(kube, namespace)
    whole = f'device.driver == "{made.driver}" && device.attributes["{made.driver}"].type == "gpu"'
    ours = {"selectors": [{"cel": {"expression": whole}}]}
    await kube.call("POST", f"{DRA}/deviceclasses", {"metadata": {"name": made.driver}, "spec": ours})
    for name in names:
        await nodes.add(name, gpus=0, devices=namespace)
        offered = [{"name": f"gpu-{n}", "attributes": {"type": {"string": "gpu"}}} for n in range(gpus)]
        parts = [{"name": "part-0", "attributes": {"type": {"string": "mig"}}}]
        spec = {
            "driver": made.driver,
            "nodeName": name,
            "pool": {"name": name, "generation": 1, "resourceSliceCount": 1},
            "devices": [*offered, *parts],
        }
        await kube.call("POST", f"{DRA}/resourceslices", {"metadata": {"name": name}, "spec": spec})
    sharing = {"mode": "DRA", "deviceClass": made.driver}
    spec = {"nodeSelector": {"devices": namespace}, "sharing": sharing}
    body = {"apiVersion": API_VERSION, "kind": "GPUPool", "metadata": {"name": made.pool}, "spec": spec}
    await kube.call("POST", f"{SLUICE}/gpupools", body)
    try:
        yield made
    finally:
        await kube.call("DELETE", f"{SLUICE}/gpupools/{made.pool}")
        await kube.call("DELETE", f"{DRA}/deviceclasses/{made.driver}")
        for name in names:
            await kube.call("DELETE", f"{DRA}/resourceslices/{name}")
