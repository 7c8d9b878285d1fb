"""Who reports: from the pod that a token is bound to, along its owners, to the job or engine it speaks for.

Names and labels prove nothing: who may create pods may write them. So each step compares uids, and a pod counts only
if its controller counts it (the Job and ReplicaSet controllers keep a pod only if it has their selector's labels) and
if it is the oldest: the controllers take in any pod with the right labels, but none of ours ever needs a second one.

What remains: who may create pods in a namespace can have one taken in before the real one is there or after it is
gone, and then lies about that namespace's own jobs. Such a person could as well exec into the trainer.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import JOB_LABEL, slot_name, stage_job_name
from sluice_operator.observe.views import Key, Owner, PodView, SlotView, StageJobView
from sluice_operator.observe.world import World, engine_key, identity, job_key, oldest_first
from sluice_operator.progress.refusal import Refusal, Refused

CONTROLLER_UID_LABEL = "batch.kubernetes.io/controller-uid"
"""Selector of a batch/v1 Job, made by the API server."""


@dataclass(frozen=True, slots=True)
class Trainer:
    """A pod of one attempt of one stage of a job."""

    pod: PodView
    stage_job: StageJobView
    job: FineTuneJob


@dataclass(frozen=True, slots=True)
class Replica:
    """A pod of one slot of an engine."""

    pod: PodView
    slot: SlotView
    engine: InferenceEngine


def trainer_of(world: World, pod: PodView) -> Trainer:
    """The job for which a trainer's pod speaks.

    Raises:
        Refused: its owners do not lead to a job that is there, or do not count it as theirs.
    """
    if pod.ended:
        raise Refused(Refusal.ENDED_POD, f"pod {pod.key.name} has ended")
    if pod.owner is None or pod.owner.kind != "Job":
        raise Refused(Refusal.NOT_A_TRAINER, f"pod {pod.key.name} has no Job as its controller")
    stage_job = world.stage_jobs.get(Key("Job", pod.key.namespace, pod.owner.name))
    if stage_job is None or stage_job.uid != pod.owner.uid:
        raise Refused(Refusal.NOT_A_TRAINER, f"Job {pod.owner.name} of pod {pod.key.name} is no stage of a FineTuneJob")
    job = _job_of(world, stage_job)
    if pod.labels.get(CONTROLLER_UID_LABEL) != stage_job.uid or pod.labels.get(JOB_LABEL) != job.metadata.name:
        raise Refused(Refusal.OTHER_JOBS_POD, f"pod {pod.key.name} does not have the labels of its Job's pods")
    if pod.index:
        raise Refused(Refusal.OTHER_JOBS_POD, f"of Job {stage_job.key.name} the pod with index 0 speaks")
    siblings = world.pods_of.get(identity(stage_job), {}).values()
    if not _speaks(pod, (other for other in siblings if not other.ended and other.index == pod.index)):
        raise Refused(Refusal.OTHER_JOBS_POD, f"Job {stage_job.key.name} has an older pod, which speaks for it")
    return Trainer(pod, stage_job, job)


def _job_of(world: World, stage_job: StageJobView) -> FineTuneJob:
    """The FineTuneJob of a stage Job, whose name must be the one that we give."""
    owner, place = stage_job.owner, stage_job.key
    if owner is None or owner.kind != "FineTuneJob":
        raise Refused(Refusal.NOT_A_TRAINER, f"Job {place.name} has no FineTuneJob as its controller")
    job = world.jobs.get(job_key(place.namespace, owner.name))
    if job is None or job.metadata.uid != owner.uid:
        raise Refused(Refusal.RECREATED_JOB, f"FineTuneJob {owner.name} with uid {owner.uid} is gone")
    if place.name != stage_job_name(owner.name, owner.uid, stage_job.stage, stage_job.attempt):
        raise Refused(Refusal.OTHER_JOBS_POD, f"Job {place.name} is not one that Sluice made for {owner.name}")
    return job


def _speaks(pod: PodView, others: Iterable[PodView]) -> bool:
    """Whether no other pod of the same controller is older: ours have one pod each, a second one is forged."""
    return oldest_first([pod, *others])[0].uid == pod.uid


def replica_of(world: World, pod: PodView, deployment: Owner | None) -> Replica:
    """The engine's slot for which a pod speaks; `deployment` is the controller of the pod's ReplicaSet.

    Raises:
        Refused: its owners do not lead to a slot of an engine that is there.
    """
    if pod.ended:
        raise Refused(Refusal.ENDED_POD, f"pod {pod.key.name} has ended")
    if deployment is None:
        raise Refused(Refusal.NOT_AN_ENGINE, f"pod {pod.key.name} belongs to no ReplicaSet of a Deployment")
    slot = world.slots.get(Key("Deployment", pod.key.namespace, deployment.name))
    if slot is None or slot.uid != deployment.uid:
        raise Refused(Refusal.NOT_AN_ENGINE, f"Deployment {deployment.name} of pod {pod.key.name} is no engine's slot")
    owner = slot.owner
    if owner is None or owner.kind != "InferenceEngine":
        raise Refused(Refusal.NOT_AN_ENGINE, f"Deployment {deployment.name} has no InferenceEngine as its controller")
    engine = world.engines.get(engine_key(pod.key.namespace, owner.name))
    if engine is None or engine.metadata.uid != owner.uid:
        raise Refused(Refusal.RECREATED_ENGINE, f"InferenceEngine {owner.name} with uid {owner.uid} is gone")
    if slot.engine != owner.name or slot.key.name != slot_name(owner.name, slot.index):
        raise Refused(Refusal.OTHER_ENGINES_POD, f"Deployment {deployment.name} is not a slot of {owner.name}")
    siblings = world.pods_of.get((pod.key.namespace, pod.owner.uid), {}).values() if pod.owner else ()
    if not _speaks(pod, (other for other in siblings if not other.ended and not other.deleting)):
        raise Refused(Refusal.OTHER_ENGINES_POD, f"slot {slot.key.name} has an older pod, which speaks for it")
    return Replica(pod, slot, engine)
