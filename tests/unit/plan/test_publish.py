"""A job publishes once, and only what it exported."""

from sluice_api.adapter import Adapter
from sluice_api.claim import AttemptOutcome, Outcomes
from sluice_api.reasons import Reason
from sluice_api.stages import ExportResult, Stage
from sluice_operator.plan.facts.outcomes import recorded
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.job.holding import Limits
from sluice_operator.plan.job.situation import JobDecision
from tests.unit.plan.worlds import NOW, PREPARED, Town

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


def town(published: str = "") -> Town:
    made = Town()
    made.node(1)
    made.engine("chat", 1)
    job = made.job("a", publish={"engine": "chat", "name": "tone"}, outcomes=(PREPARED, TRAINED, EXPORTED))
    text = Outcomes(attempts=(PREPARED, TRAINED, EXPORTED), published=published).to_json()
    metadata = job.metadata.model_copy(update={"annotations": {"sluice.dev/outcomes": text}, "resource_version": "900"})
    made.put(job.model_copy(update={"metadata": metadata}))
    return made


def adapter(made: Town, digest: str, ready: str) -> None:
    made.put(
        Adapter.model_validate(
            {
                "metadata": {
                    "name": "tone",
                    "namespace": "team",
                    "uid": "ad",
                    "generation": 1,
                    "resourceVersion": "901",
                },
                "spec": {"engine": "chat", "source": {"uri": "pvc://adapters/out/a/export", "digest": digest}},
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


def decide(made: Town) -> JobDecision:
    job = next(iter(made.world.jobs.values()))
    return plan_job(made.world, job, NOW, Limits())


def test_the_adapter_is_written_when_it_is_not_there() -> None:
    decision = decide(town())
    assert decision.reason is Reason.PUBLISHING
    assert decision.publish == EXPORTED.export


def test_another_jobs_adapter_of_the_same_name_is_replaced() -> None:
    made = town()
    adapter(made, OTHER, "True")
    assert decide(made).publish == EXPORTED.export


def test_a_refused_adapter_says_why_and_is_waited_for() -> None:
    made = town()
    adapter(made, DIGEST, "False")
    decision = decide(made)
    assert (decision.reason, decision.message, decision.failed) == (Reason.BASE_MODEL_DIFFERS, "words", False)


def test_success_is_recorded_where_it_outlives_status() -> None:
    made = town()
    adapter(made, DIGEST, "True")
    decision = decide(made)
    assert decision.reason is Reason.SUCCEEDED
    assert decision.record is not None
    assert decision.record.published == DIGEST


def test_a_rollback_by_hand_after_success_stays_though_the_status_was_lost() -> None:
    made = town(published=DIGEST)
    adapter(made, OTHER, "True")
    decision = decide(made)
    assert decision.publish is None
    assert decision.reason is Reason.SUCCEEDED
    assert recorded(next(iter(made.world.jobs.values()))).published == DIGEST
