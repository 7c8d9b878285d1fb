"""What is found out about one waiting job holds for all that are alike, and for no other."""

from typing import Any

import pytest

from dev.simulate.builder import WorldBuilder
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_operator.plan.pool.refusals import refusal
from sluice_operator.plan.pool.reservations import alike

PUBLISH = {"engine": "chat", "name": "haiku"}
SPEC: dict[str, Any] = {"publish": PUBLISH, "scheduling": {"policy": "Preempt", "priority": 1}}

REFUSED: dict[str, tuple[dict[str, Any], Reason]] = {
    "pool": ({"resources": {"pool": "nowhere"}}, Reason.POOL_NOT_FOUND),
    "gpus": ({"gpus": 3}, Reason.EXCEEDS_EVERY_NODE),
    "memory": ({"resources": {"memory": "900Gi"}}, Reason.EXCEEDS_EVERY_NODE),
    "nodes": ({"resources": {"nodes": 9}}, Reason.EXCEEDS_POOL),
    "policy": ({"scheduling": {"policy": "Shared"}}, Reason.POOL_DOES_NOT_SHARE),
    "priority": ({"scheduling": {"policy": "Preempt", "priority": 9}}, Reason.PRIORITY_TOO_HIGH),
    "namespace": ({"namespace": "others"}, Reason.NAMESPACE_NOT_ALLOWED),
    "engine": ({"publish": {**PUBLISH, "engine": "none"}}, Reason.ENGINE_NOT_FOUND),
    "rank": ({"lora": {"rank": 128}}, Reason.RANK_TOO_LARGE),
    "model": ({"model": {"uri": "pvc://models/other"}}, Reason.BASE_MODEL_DIFFERS),
    "output": ({"output": {"uri": "pvc://datasets/out"}}, Reason.ADAPTER_SOURCE_NOT_MOUNTED),
    "output in a store": (
        {"output": {"uri": "s3://bucket/out", "credentials": {"secret": "writes"}}},
        Reason.ADAPTER_SOURCE_NOT_MOUNTED,
    ),
    "dataset": ({"dataset": {"uri": "pvc://none/rows.jsonl"}}, Reason.VOLUME_CLAIM_NOT_FOUND),
}
"""Changes of a job that is not refused, and why each is."""


@pytest.fixture
def builder() -> WorldBuilder:
    """A pool for one namespace, whose jobs may have a priority of at most 5, and an engine there."""
    here = WorldBuilder()
    here.pool(
        allowedNamespaces={"matchLabels": {"kubernetes.io/metadata.name": "team"}},
        quotas=[{"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "team"}}, "maxPriority": 5}],
    )
    here.node(2)
    here.engine("chat", 1)
    return here


def said(builder: WorldBuilder, job: FineTuneJob) -> Reason | None:
    """Why a job is refused."""
    told = refusal(builder.world, job)
    return told.reason if told else None


@pytest.mark.parametrize("changed", REFUSED)
def test_jobs_that_differ_in_a_refused_field_are_not_alike(builder: WorldBuilder, changed: str) -> None:
    """Whichever of the two jobs is asked about first."""
    changes, expected = REFUSED[changed]
    good, bad = builder.job("good", **SPEC), builder.job("bad", **{**SPEC, **changes})

    for job in (good, bad, good):
        assert said(builder, job) is (expected if job is bad else None)

    first = builder.job("first", **{**SPEC, **changes})
    assert alike(builder.world, first) is alike(builder.world, bad)
    assert alike(builder.world, first) is not alike(builder.world, good)


def test_jobs_with_dataset_and_output_swapped_are_not_alike(builder: WorldBuilder) -> None:
    """The engine mounts `adapters` only."""
    uris = {"uri": "pvc://models/rows.jsonl"}, {"uri": "pvc://adapters/out"}
    good = builder.job("good", **SPEC, dataset=uris[0], output=uris[1])
    bad = builder.job("bad", **SPEC, dataset={"uri": "pvc://adapters/rows.jsonl"}, output={"uri": "pvc://models/out"})

    assert said(builder, good) is None
    assert said(builder, bad) is Reason.ADAPTER_SOURCE_NOT_MOUNTED


def test_job_with_its_output_in_a_store_is_not_refused_for_volume_claims() -> None:
    """Two nodes, no claim that both could mount; the engine can read the store."""
    here = WorldBuilder()
    here.node(1)
    here.node(1)
    opened = {"secret": "writes"}
    here.engine("chat", 1, lora={"credentials": opened})
    several = here.job("several", 1, resources={"nodes": 2}, output={"uri": "s3://bucket/out", "credentials": opened})
    assert said(here, several) is None
    assert several.spec.volumes == ("models", "datasets")
    publishes = here.job("publishes", 1, **SPEC, output={"uri": "s3://bucket/out", "credentials": opened})
    assert said(here, publishes) is None
    public = here.job("public", 1, **SPEC, output={"uri": "s3://bucket/out"})
    assert said(here, public) is None


def test_job_with_a_changed_priority_is_not_alike(builder: WorldBuilder) -> None:
    """Its priority may change while it waits."""
    before = builder.job("a", **SPEC)
    assert said(builder, before) is None

    after = builder.job("a", **{**SPEC, "scheduling": {"policy": "Preempt", "priority": 9}})

    assert said(builder, after) is Reason.PRIORITY_TOO_HIGH


def test_jobs_whose_outputs_are_opened_otherwise_are_not_alike(builder: WorldBuilder) -> None:
    """The engine has no lora.credentials."""
    uri = {"uri": "s3://adapters/out"}
    good = builder.job("good", **SPEC, output=uri)
    bad = builder.job("bad", **SPEC, output={**uri, "credentials": {"secret": "store"}})

    assert said(builder, good) is None
    assert said(builder, bad) is Reason.ADAPTER_SOURCE_NOT_MOUNTED
