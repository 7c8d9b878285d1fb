"""A World whose GPUs are served by DRA: drivers offer them in ResourceSlices, ResourceClaims have them."""

from dataclasses import replace
from typing import Any

from dev.simulate.builder import WorldBuilder
from sluice_api.claim import Claim, NodeAllocation, Share, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import SharingMode
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import DEFAULT_DEVICE_CLASS, slot_gpus_name
from sluice_operator.observe.views import DeviceClaimView, NodeView, Owner, PodView, StageJobView
from tests.unit.plan.worlds import allocated

DRIVER = DEFAULT_DEVICE_CLASS
BY_DRA: dict[str, Any] = {"sharing": {"mode": "DRA"}}
SHARED: dict[str, Any] = {"policy": "Shared"}
"""A share of 30 %."""
SLEEPS: dict[str, Any] = {"policy": "Sleep", "minReplicas": 0}


class DraWorldBuilder(WorldBuilder):
    """Nodes offer their GPUs in ResourceSlices, and a slot's pod that is on a node has a ResourceClaim."""

    def __init__(self, *gpus: int, **pool: Any) -> None:
        """Nodes with so many GPUs each, in the pool `default`."""
        super().__init__()
        self.pool(**{**BY_DRA, **pool})
        for count in gpus:
            self.node(count)

    def node(self, gpus: int, *args: Any, **changes: Any) -> NodeView:
        """A node with nothing in its allocatable."""
        node = super().node(0, *args, **changes)
        self.offers(node.key.name, gpus)
        return node

    def slot_has(self, engine: InferenceEngine, index: int, node: str, **changes: Any) -> DeviceClaimView:
        """A slot's ResourceClaim."""
        name, space = engine.metadata.name, engine.metadata.namespace
        labels = {"sluice.dev/engine": name, "sluice.dev/slot": str(index)}
        owner = Owner("InferenceEngine", name, engine.metadata.uid)
        gpus = engine.spec.resources.gpus
        return self.has(slot_gpus_name(name, index), node, gpus, space, owner, labels=labels, **changes)

    def slot(
        self, engine: InferenceEngine, index: int, node: str = "", *, ready: bool = True, size: int = 1
    ) -> PodView | None:
        """A slot's Deployment and pod, and what that one has."""
        pod = super().slot(engine, index, node, ready=ready, size=size)
        if pod and node:
            self.slot_has(engine, index, node, pods=(pod.uid,))
        return pod

    def serving(self, name: str, *nodes: str, leaves: int = 30, **spec: Any) -> InferenceEngine:
        """An engine with a replica on each of some nodes, that leaves so many percent of the memory."""
        serving = {"gpuMemoryUtilization": f"{(100 - leaves) / 100:.2f}"}
        engine = self.engine(name, len(nodes), **{"serving": serving, "preemption": SLEEPS, **spec})
        for index, node in enumerate(nodes):
            self.slot(engine, index, node)
        return engine

    def trains(self, job: FineTuneJob, node: str, *borrowed: SlotRef, **changes: Any) -> StageJobView:
        """A training Job whose pod is on a node, with what it has of its own."""
        gpus = job.spec.resources.gpus
        own = changes.pop("own", gpus)
        claim = Claim(
            pool="default",
            resource=DRIVER,
            gpus=gpus,
            places=(NodeAllocation(node=node, borrowed=borrowed),),
            own_devices=own,
            term=1,
        )
        stage_job = self.stage_job(job, claim=claim, **changes)
        pod = self.trainer_pod(stage_job, node)
        if own:
            self.has(f"{pod.key.name}-gpus", node, own, owner=Owner("Pod", pod.key.name, pod.uid))
        return stage_job

    def visits(self, job: FineTuneJob, node: str, slot: SlotRef, *, bound: bool = True, term: int = 1) -> StageJobView:
        """The training Job of a guest."""
        share = Share(mode=SharingMode.DRA, percent=job.spec.scheduling.share_percent)
        places = (NodeAllocation(node=node, beside=slot),)
        claim = Claim(pool="default", resource=DRIVER, gpus=1, places=places, share=share, own_devices=0, term=term)
        stage_job = self.stage_job(job, claim=claim)
        self.trainer_pod(stage_job, node if bound else "")
        return stage_job


def unallocated(claim: DeviceClaimView, version: int) -> DeviceClaimView:
    """A ResourceClaim before anybody has given it devices."""
    return replace(claim, node="", devices={}, resource_version=version)


def chat(index: int) -> SlotRef:
    return SlotRef(namespace="team", engine="chat", index=index)


def guests(builder: WorldBuilder) -> str:
    """`a beside chat/0; b takes chat/1; c waits WaitingForShare`, by name."""
    allocation = allocated(builder)
    found = {
        key.name: f"beside {claim.host}" if claim.host else f"takes {' '.join(map(str, claim.borrowed)) or 'free'}"
        for key, claim in allocation.claims.items()
    }
    found.update({key.name: f"waits {wait.reason}" for key, wait in allocation.waits.items()})
    return "; ".join(f"{name} {what}" for name, what in sorted(found.items()))
