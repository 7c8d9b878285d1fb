"""What Prepare is told about the pool's GPUs, and what its answer becomes in the status."""

from typing import Any

import pytest

from dev.simulate.builder import NOW, PREPARED, WorldBuilder
from sluice_api.pods import STAGE_ENV
from sluice_api.stages import PoolFacts, PrepareResult, Stage, StageSpec
from sluice_operator.facts.gpus import pool_facts
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.settings import Limits
from sluice_operator.status.job import job_status
from tests.unit.manifests.examples import CLAIM, CUDA, JOB, environment, stage_job

GIB = 1 << 30


def gpu(memory: str = "", product: str = "") -> dict[str, str]:
    """A node's labels."""
    labels = {"nvidia.com/gpu.memory": memory, "nvidia.com/gpu.product": product}
    return {name: value for name, value in labels.items() if value}


@pytest.mark.parametrize(
    ("rule", "nodes", "pool", "job", "expected"),
    [
        ("nothing known", [{}], {}, {}, None),
        ("no node", [], {}, {}, None),
        (
            "one kind",
            [gpu("46080", "NVIDIA-L40S")] * 2,
            {},
            {},
            PoolFacts(gpu_product="NVIDIA-L40S", gpu_memory_bytes=45 * GIB),
        ),
        (
            "the largest",
            [gpu("24576", "NVIDIA-L4"), gpu("46080", "NVIDIA-L40S")],
            {},
            {},
            PoolFacts(gpu_memory_bytes=45 * GIB),
        ),
        (
            "one does not say",
            [gpu("24576", "NVIDIA-L4"), gpu(product="NVIDIA-L4")],
            {},
            {},
            PoolFacts(gpu_product="NVIDIA-L4"),
        ),
        ("no number", [gpu("24Gi")], {}, {}, None),
        ("the price", [{}], {"pricePerGpuHour": "1.80"}, {}, PoolFacts(price_per_gpu_hour="1.80")),
        (
            "a share of a GPU",
            [gpu("24576")],
            {},
            {"policy": "Shared", "share": "25%"},
            PoolFacts(gpu_memory_bytes=6 * GIB),
        ),
        (
            "larger nodes may come",
            [gpu("24576", "NVIDIA-L4")],
            {},
            {"scaleUpFirst": {}},
            PoolFacts(gpu_product="NVIDIA-L4"),
        ),
    ],
)
def test_pool_facts_are_those_of_its_largest_gpu(
    rule: str, nodes: list[dict[str, str]], pool: dict[str, Any], job: dict[str, Any], expected: PoolFacts | None
) -> None:
    builder = WorldBuilder()
    builder.pool(**pool)
    for labels in nodes:
        builder.node(1, labels=labels)
    assert pool_facts(builder.world, builder.job("a", scheduling=job)) == expected, rule


def test_pool_facts_are_not_those_of_another_pools_nodes() -> None:
    builder = WorldBuilder()
    builder.pool("other", nodeSelector={"kind": "h100"})
    builder.node(1, labels=gpu("24576"))
    builder.node(1, labels={"kind": "h100", **gpu("81559")})
    assert pool_facts(builder.world, builder.job("a")) == PoolFacts(gpu_memory_bytes=24 * GIB)


@pytest.mark.parametrize("stage", Stage)
def test_pool_facts_are_told_to_prepare_alone(stage: Stage) -> None:
    facts = PoolFacts(gpu_product="NVIDIA-L4")
    manifest = stage_job(JOB, stage, 1, CUDA, CLAIM if stage is Stage.TRAIN else None, pool=facts)
    (trainer,) = manifest["spec"]["template"]["spec"]["containers"]
    told = StageSpec.model_validate(environment(trainer, STAGE_ENV))
    assert told.pool == (facts if stage is Stage.PREPARE else None)


FOUND = PrepareResult(
    rows=90, validation_rows=10, refused_rows=1, overlong_rows=2, dropped_rows=7, duplicate_rows=3,
    conflicting_questions=1, tokens=9000, loss_tokens=4000, longest_row=512, steps=30,
    estimated_gpu_memory_bytes=6 * GIB, estimated_seconds=840, estimated_price="0.42",
    problems=("3 rows are there twice.", "1 question has two answers."),
)  # fmt: skip


def test_status_data_is_what_prepare_found_and_the_condition_has_its_problems() -> None:
    builder = WorldBuilder()
    builder.node(1)
    job = builder.job("a", outcomes=(PREPARED.model_copy(update={"prepare": FOUND}),))
    status = job_status(builder.world, job, plan_job(builder.world, job, NOW, Limits()), NOW)
    assert status.data is not None
    assert status.data.model_dump(mode="json", by_alias=True) == {
        "rows": 90, "validationRows": 10, "refusedRows": 1, "overlongRows": 2, "droppedRows": 7, "duplicateRows": 3,
        "conflictingQuestions": 1, "tokens": 9000, "lossTokens": 4000, "longestRow": 512, "steps": 30,
        "estimatedGpuMemory": "6Gi", "estimatedSeconds": 840, "estimatedPrice": "0.42",
    }  # fmt: skip
    told = {condition.type: condition for condition in status.conditions}
    assert told["Prepared"].status == "True"
    assert told["Prepared"].message == "3 rows are there twice.\n1 question has two answers."
    assert "twice" not in told["Admitted"].message


def test_status_data_of_an_older_prepare_estimates_nothing() -> None:
    builder = WorldBuilder()
    builder.node(1)
    job = builder.job("a")
    data = job_status(builder.world, job, plan_job(builder.world, job, NOW, Limits()), NOW).data
    assert data is not None
    assert (data.estimated_gpu_memory, data.estimated_seconds, data.estimated_price) == ("", None, "")
