"""Engines whose replicas can't start hold no GPUs, and say why."""

from datetime import timedelta
from typing import Any

import pytest

from dev.simulate.builder import NOW, WorldBuilder
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.world import World, job_key, key_of
from sluice_operator.plan import inventory
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.obstacle import Obstacle
from sluice_operator.plan.startable import start_obstacle
from tests.unit.plan.worlds import allocated, decide, planned_status, volume_in_zone


def delete(builder: WorldBuilder, engine: InferenceEngine) -> None:
    """The engine is deleted, and a finalizer keeps it."""
    builder.version += 1
    going = {"deletion_timestamp": NOW - timedelta(hours=5), "resource_version": str(builder.version)}
    builder.put(engine.model_copy(update={"metadata": engine.metadata.model_copy(update=going)}))


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        ({"resources": {"memory": "10Ti"}}, Reason.EXCEEDS_EVERY_NODE, "spec.resources.memory: needs 10240Gi"),
        ({"resources": {"cpu": "1000"}}, Reason.EXCEEDS_EVERY_NODE, "spec.resources.cpu: needs 1000"),
        ({"resources": {"gpus": 8}}, Reason.EXCEEDS_EVERY_NODE, "spec.resources.gpus: 8 are asked for"),
        ({"model": {"uri": "pvc://nothing/m"}}, Reason.VOLUME_CLAIM_NOT_FOUND, "spec.model.uri: PersistentVolumeClaim"),
    ],
)
def test_engine_that_can_not_start_holds_no_gpu(spec: dict[str, Any], reason: Reason, message: str) -> None:
    builder = WorldBuilder()
    builder.node(4)
    engine = builder.engine("evil", 4, namespace="evil", **spec)
    builder.job("good", 1)
    pool = find_pool(builder.world, "default")
    assert pool is not None
    assert job_key("team", "good") in allocated(builder).claims
    assert take_stock(builder.world, pool).lacking == 0, "nobody adds GPUs for it"
    ready = planned_status(builder.world, engine).conditions[0]
    assert ready.reason == reason
    assert ready.message.startswith(f"0 of 4 replicas serve. {message}")


def test_deleted_engine_that_a_finalizer_keeps_holds_no_gpu() -> None:
    builder = WorldBuilder()
    builder.node(1)
    engine = builder.engine("ghost", 1, namespace="evil")
    delete(builder, engine)
    builder.job("good", 1)
    assert job_key("team", "good") in allocated(builder).claims


def test_refused_replicas_of_others_are_not_added_up_in_a_remedy() -> None:
    """A tenant that may serve with 1 GPU asks for 1000 replicas."""
    builder = WorldBuilder()
    builder.pool(
        quotas=({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "evil"}}, "maxServingGPUs": 1},)
    )
    builder.node(1)
    engine = builder.engine("big", 1000, namespace="evil", preemption={"policy": "Never"})
    builder.slot(engine, 0, "n1")
    builder.job("a", 1)
    wait = allocated(builder).waits[job_key("team", "a")]
    assert wait.message.endswith("or add 1 GPU to the pool.")


def test_claim_on_a_deleted_engine_is_given_up_before_it_drains() -> None:
    """Nobody tells the replicas of a deleted engine to drain: the job would wait until its deadline."""
    builder = WorldBuilder()
    builder.node(1)
    engine = builder.engine("bait", 1, preemption={"policy": "ScaleDown", "minReplicas": 0})
    builder.slot(engine, 0, "n1")
    job = builder.job("a", 1)
    claim = allocated(builder).claims[key_of(job)]
    builder.trainer_pod(builder.stage_job(job, claim=claim))
    delete(builder, engine)
    assert [stage_job.attempt for stage_job in decide(builder, "a").delete] == [1]


def test_engine_whose_volume_no_node_reaches_holds_no_gpu() -> None:
    builder = WorldBuilder()
    builder.node(1, labels={"zone": "a"})
    engine = builder.engine("far", 1, namespace="evil")
    volume_in_zone(builder, "evil", "models", "b")
    builder.job("good", 1)
    assert job_key("team", "good") in allocated(builder).claims
    ready = planned_status(builder.world, engine).conditions[0]
    assert ready.reason == Reason.NO_NODES
    assert "can mount the volume of volume claim models" in ready.message


def test_engine_that_raises_is_set_aside_and_the_pool_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = WorldBuilder()
    builder.node(1)
    evil = builder.engine("evil", 1, namespace="evil")
    builder.job("good", 1)
    asked = start_obstacle

    def raises(world: World, pool: GPUPool, engine: InferenceEngine) -> Obstacle | None:
        if engine is evil:
            raise ZeroDivisionError("poison")
        return asked(world, pool, engine)

    monkeypatch.setattr(inventory, "start_obstacle", raises)
    assert job_key("team", "good") in allocated(builder).claims
