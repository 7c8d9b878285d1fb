"""For whom a pod speaks: every break in the chain of owners has its own name."""

from dataclasses import replace

import pytest

from sluice_api.meta import INDEX_LABEL
from sluice_operator.observe.parse import Stored
from sluice_operator.observe.views import Owner, PodView
from sluice_operator.progress.identity import replica_of, trainer_of
from sluice_operator.progress.refusal import Refusal, Refused
from tests.unit.progress.worlds import (
    DEPLOYMENT,
    REPLICA,
    SLOT,
    STAGE_JOB,
    TRAINER,
    engine,
    job,
    store,
    whole,
    younger,
)

OTHER = Owner("Job", STAGE_JOB.key.name, "another-uid")


def test_trainer_pod_speaks_for_its_job() -> None:
    trainer = trainer_of(whole().world(), TRAINER)
    assert (trainer.job.metadata.uid, trainer.stage_job.uid) == ("job-uid", "train-uid")


def test_terminating_trainer_pod_speaks_for_its_job() -> None:
    assert trainer_of(whole().world(), replace(TRAINER, deleting=True)).job.metadata.name == "tone"


def test_successor_of_an_ended_trainer_pod_speaks_for_its_job() -> None:
    successor = younger(TRAINER, "successor")
    world = whole(replace(TRAINER, ended=True, resource_version=2), successor).world()
    assert trainer_of(world, successor).pod is successor


def test_first_pod_of_a_group_speaks_for_its_job() -> None:
    first = replace(younger(TRAINER, "first"), labels={**TRAINER.labels, INDEX_LABEL: "0"})
    other = replace(TRAINER, labels={**TRAINER.labels, INDEX_LABEL: "1"}, resource_version=2)
    world = whole(other, first).world()
    assert trainer_of(world, first).pod is first
    with pytest.raises(Refused) as refused:
        trainer_of(world, other)
    assert refused.value.refusal is Refusal.OTHER_JOBS_POD


@pytest.mark.parametrize(
    ("rule", "pod", "world", "expected"),
    [
        ("a pod that has ended is silent", replace(TRAINER, ended=True), (), Refusal.ENDED_POD),
        ("a pod without a controller", replace(TRAINER, owner=None), (), Refusal.NOT_A_TRAINER),
        ("a pod of a ReplicaSet", REPLICA, (), Refusal.NOT_A_TRAINER),
        ("a pod of a Job of the same name, before", replace(TRAINER, owner=OTHER), (), Refusal.NOT_A_TRAINER),
        (
            "labels of another job",
            replace(TRAINER, labels={**TRAINER.labels, "sluice.dev/job": "b"}),
            (),
            Refusal.OTHER_JOBS_POD,
        ),
        (
            "no label of the Job's selector",
            replace(TRAINER, labels={"sluice.dev/job": "tone"}),
            (),
            Refusal.OTHER_JOBS_POD,
        ),
        ("a second pod of one Job", younger(TRAINER, "forged"), (TRAINER,), Refusal.OTHER_JOBS_POD),
        (
            "a pod of a Job of nobody",
            TRAINER,
            (replace(STAGE_JOB, owner=None, resource_version=2),),
            Refusal.NOT_A_TRAINER,
        ),
    ],
)
def test_pod_that_is_no_trainer_is_refused(
    rule: str, pod: PodView, world: tuple[Stored, ...], expected: Refusal
) -> None:
    with pytest.raises(Refused) as refused:
        trainer_of(whole(*world).world(), pod)
    assert refused.value.refusal is expected, rule


def test_pod_of_a_recreated_job_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        trainer_of(store(job(uid="new-uid"), STAGE_JOB, TRAINER).world(), TRAINER)
    assert refused.value.refusal is Refusal.RECREATED_JOB


def test_pod_of_a_stage_job_with_another_name_is_refused() -> None:
    mine = replace(STAGE_JOB, key=STAGE_JOB.key._replace(name="mine"))
    pod = replace(TRAINER, owner=Owner("Job", "mine", "train-uid"))
    with pytest.raises(Refused) as refused:
        trainer_of(store(job(), mine, pod).world(), pod)
    assert refused.value.refusal is Refusal.OTHER_JOBS_POD


def test_replica_pod_speaks_for_its_engine() -> None:
    replica = replica_of(whole().world(), REPLICA, DEPLOYMENT)
    assert (replica.engine.metadata.uid, replica.slot.index) == ("engine-uid", 0)


def test_replacement_pod_speaks_while_the_old_one_terminates() -> None:
    replacement = younger(REPLICA, "replacement")
    world = whole(replace(REPLICA, deleting=True, resource_version=2), replacement).world()
    assert replica_of(world, replacement, DEPLOYMENT).pod is replacement


@pytest.mark.parametrize(
    ("rule", "pod", "deployment", "world", "expected"),
    [
        ("a pod that has ended", replace(REPLICA, ended=True), DEPLOYMENT, (), Refusal.ENDED_POD),
        ("a pod of no ReplicaSet of a Deployment", REPLICA, None, (), Refusal.NOT_AN_ENGINE),
        (
            "a Deployment of the same name, before",
            REPLICA,
            Owner("Deployment", "chat-0", "x"),
            (),
            Refusal.NOT_AN_ENGINE,
        ),
        ("a Deployment of somebody's", REPLICA, Owner("Deployment", "web", "x"), (), Refusal.NOT_AN_ENGINE),
        (
            "a Deployment of nobody",
            REPLICA,
            DEPLOYMENT,
            (replace(SLOT, owner=None, resource_version=2),),
            Refusal.NOT_AN_ENGINE,
        ),
        ("a second pod of one slot", younger(REPLICA, "forged"), DEPLOYMENT, (), Refusal.OTHER_ENGINES_POD),
        (
            "labels of another engine",
            REPLICA,
            DEPLOYMENT,
            (replace(SLOT, engine="b", resource_version=2),),
            Refusal.OTHER_ENGINES_POD,
        ),
    ],
)
def test_pod_that_is_no_replica_is_refused(
    rule: str, pod: PodView, deployment: Owner | None, world: tuple[Stored, ...], expected: Refusal
) -> None:
    with pytest.raises(Refused) as refused:
        replica_of(whole(*world).world(), pod, deployment)
    assert refused.value.refusal is expected, rule


def test_pod_of_a_recreated_engine_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        replica_of(store(engine(uid="new-uid"), SLOT, REPLICA).world(), REPLICA, DEPLOYMENT)
    assert refused.value.refusal is Refusal.RECREATED_ENGINE
