"""A job publishes once, and only what it exported."""

import pytest

from sluice_api.adapter import Adapter
from sluice_api.claim import AttemptOutcome, Outcomes
from sluice_api.reasons import Reason
from sluice_api.stages import ExportResult, Stage
from sluice_operator.facts.outcomes import recorded
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.job.situation import JobDecision
from sluice_operator.settings import Limits
from tests.unit.plan.worlds import NOW, PREPARED, WorldBuilder, allocated, describe

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
TRAINED = AttemptOutcome(stage=Stage.TRAIN, attempt=1, reason="Done", ended_at=NOW)
EXPORTED = AttemptOutcome(
    stage=Stage.EXPORT,
    attempt=1,
    reason="Done",
    ended_at=NOW,
    export=ExportResult(uri="pvc://adapters/out/a/export", digest=DIGEST, rank=16, size_bytes=1),
)


def builder(published: str = "", *, replace: bool = False) -> WorldBuilder:
    made = WorldBuilder()
    made.node(1)
    made.engine("chat", 1)
    job = made.job(
        "a", publish={"engine": "chat", "name": "tone", "replace": replace}, outcomes=(PREPARED, TRAINED, EXPORTED)
    )
    text = Outcomes(attempts=(PREPARED, TRAINED, EXPORTED), published=published).to_json()
    metadata = job.metadata.model_copy(update={"annotations": {"sluice.dev/outcomes": text}, "resource_version": "900"})
    made.put(job.model_copy(update={"metadata": metadata}))
    return made


def adapter(made: WorldBuilder, digest: str, ready: str, job: str = "a", engine: str = "chat") -> None:
    made.put(
        Adapter.model_validate(
            {
                "metadata": {
                    "name": "tone",
                    "namespace": "team",
                    "uid": "ad",
                    "labels": {"sluice.dev/job": job} if job else {},
                    "generation": 1,
                    "resourceVersion": "901",
                },
                "spec": {"engine": engine, "source": {"uri": "pvc://adapters/out/a/export", "digest": digest}},
                "status": {
                    "conditions": [
                        {
                            "type": "Ready",
                            "status": ready,
                            "reason": "Loaded" if ready == "True" else "BaseModelDiffers",
                            "message": "words",
                            "observedGeneration": 1,
                            "lastTransitionTime": NOW,
                        }
                    ]
                },
            }
        )
    )


def decide(made: WorldBuilder) -> JobDecision:
    job = next(iter(made.world.jobs.values()))
    return plan_job(made.world, job, NOW, Limits())


def test_publish_writes_a_missing_adapter() -> None:
    decision = decide(builder())
    assert decision.reason is Reason.PUBLISHING
    assert decision.publish == EXPORTED.export


@pytest.mark.parametrize(
    ("rule", "job", "replace", "engine", "says"),
    [
        ("its own is written anew, and that of one before it of the same name", "a", False, "chat", ""),
        ("another job's is not", "b", False, "chat", "Adapter tone is there already, and was written by FineTuneJob b"),
        ("a person's is not", "", False, "chat", "Adapter tone is there already, and was not written by a job"),
        ("unless the job says so", "b", True, "chat", ""),
        ("of a person's too", "", True, "chat", ""),
        ("its engine can't be changed", "a", True, "other", "Adapter tone is one of engine other"),
    ],
)
def test_name_taken_unless_the_adapter_is_own_or_replace_is_set(
    rule: str, job: str, replace: bool, engine: str, says: str
) -> None:
    made = builder(replace=replace)
    adapter(made, OTHER, "True", job, engine)
    decision = decide(made)
    assert decision.publish == (None if says else EXPORTED.export), rule
    assert (decision.reason, decision.failed) == (Reason.NAME_TAKEN if says else Reason.PUBLISHING, False), rule
    assert says in decision.message


def test_job_with_name_taken_gets_no_gpu() -> None:
    made = WorldBuilder()
    made.node(2)
    made.engine("chat", 1)
    made.job("a", publish={"engine": "chat", "name": "tone"})
    made.job("b", publish={"engine": "chat", "name": "tone"})
    adapter(made, OTHER, "True", "b")
    assert decide(made).reason is Reason.NAME_TAKEN
    assert describe(allocated(made)) == "b takes n1"


def test_publish_waits_for_a_refused_adapter_and_says_why() -> None:
    made = builder()
    adapter(made, DIGEST, "False")
    decision = decide(made)
    assert (decision.reason, decision.message, decision.failed) == (Reason.BASE_MODEL_DIFFERS, "words", False)


def test_success_records_the_published_digest() -> None:
    made = builder()
    adapter(made, DIGEST, "True")
    decision = decide(made)
    assert decision.reason is Reason.SUCCEEDED
    assert decision.record is not None
    assert decision.record.published == DIGEST


def test_rollback_by_hand_survives_a_lost_status() -> None:
    made = builder(published=DIGEST)
    adapter(made, OTHER, "True")
    decision = decide(made)
    assert decision.publish is None
    assert decision.reason is Reason.SUCCEEDED
    assert recorded(next(iter(made.world.jobs.values()))).published == DIGEST
