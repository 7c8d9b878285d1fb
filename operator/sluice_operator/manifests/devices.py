"""GPUs that DRA serves: the ResourceClaims by which pods have them, instead of an extended resource."""

from collections.abc import Sequence

from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPoolSpec
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import ENGINE_LABEL, JOB_LABEL, SLOT_LABEL, slot_gpus_name, training_gpus_name
from sluice_operator.manifests.metadata import app_labels, owned_by
from sluice_operator.writes import Manifest

API_VERSION = "resource.k8s.io/v1"
GPUS = "gpus"
"""What a pod calls the claim of GPUs of its own."""


def slot_gpus(engine: InferenceEngine, index: int, pool: GPUPoolSpec) -> Manifest:
    """The ResourceClaim of a slot's GPUs. Jobs beside the slot use it too, and those that borrow it while it sleeps.

    Not from a template: it outlives the slot's pod as long as anybody uses it, and has a name that a job can know.
    """
    labels = {
        **app_labels("engine", engine.metadata.name),
        ENGINE_LABEL: engine.metadata.name,
        SLOT_LABEL: str(index),
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "ResourceClaim",
        "metadata": owned_by(engine, slot_gpus_name(engine.metadata.name, index), labels),
        "spec": _devices(pool.sharing.device_class, engine.spec.resources.gpus),
    }


def training_gpus(job: FineTuneJob, claim: Claim) -> Manifest | None:
    """What each pod of a training Job gets GPUs of its own from; None when it has none, or none that DRA serves.

    Attempts that get as many share it: it is there until the job goes.
    """
    if not claim.own_devices:
        return None
    labels = {**app_labels("trainer", job.metadata.name), JOB_LABEL: job.metadata.name}
    return {
        "apiVersion": API_VERSION,
        "kind": "ResourceClaimTemplate",
        "metadata": owned_by(job, _training_gpus_name(job, claim), labels),
        "spec": {"metadata": {"labels": labels}, "spec": _devices(claim.resource, claim.own_devices)},
    }


def of_slot(engine: InferenceEngine, index: int) -> list[Manifest]:
    """spec.resourceClaims of a slot's pod."""
    return [{"name": GPUS, "resourceClaimName": slot_gpus_name(engine.metadata.name, index)}]


def of_training(job: FineTuneJob, claim: Claim) -> list[Manifest]:
    """spec.resourceClaims of a training pod: those of the slots that it borrows or is beside, and its own."""
    slots = [*claim.borrowed, *([claim.host] if claim.host else [])]
    found: list[Manifest] = [
        {"name": f"slot-{number}", "resourceClaimName": slot_gpus_name(slot.engine, slot.index)}
        for number, slot in enumerate(slots)
    ]
    if claim.own_devices:
        found.append({"name": GPUS, "resourceClaimTemplateName": _training_gpus_name(job, claim)})
    return found


def _training_gpus_name(job: FineTuneJob, claim: Claim) -> str:
    return training_gpus_name(job.metadata.name, job.metadata.uid, claim.resource, claim.own_devices or 0)


def with_claims(resources: Manifest, claims: Sequence[Manifest]) -> Manifest:
    """A container's resources and the devices of its pod."""
    return {**resources, "claims": [{"name": claim["name"]} for claim in claims]}


def _devices(device_class: str, count: int) -> Manifest:
    exactly = {"deviceClassName": device_class, "allocationMode": "ExactCount", "count": count}
    return {"devices": {"requests": [{"name": GPUS, "exactly": exactly}]}}
