"""A changed spec restarts an engine's replicas one at a time, and never takes it below its floor while it lends."""

from dataclasses import replace

from dev.simulate.builder import NOW, WorldBuilder
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_operator.facts.slots import template_of
from sluice_operator.observe.views import SlotView
from sluice_operator.observe.world import engine_key
from sluice_operator.plan.engine.decide import plan_engine
from tests.unit.plan.test_claim_cycle import Loan, training
from tests.unit.plan.worlds import parse, planned_status


def chat(builder: WorldBuilder) -> InferenceEngine:
    return builder.world.engines[engine_key("team", "chat")]


def respec(builder: WorldBuilder) -> None:
    """The engine's model is served under another length from now on."""
    engine = chat(builder)
    serving = engine.spec.serving.model_copy(update={"max_model_length": 512})
    builder.version += 1
    metadata = engine.metadata.model_copy(update={"resource_version": str(builder.version)})
    spec = engine.spec.model_copy(update={"serving": serving})
    builder.put(engine.model_copy(update={"spec": spec, "metadata": metadata}))


def slot(builder: WorldBuilder, index: int) -> SlotView:
    return next(view for view in builder.world.slots.values() if view.index == index)


def restarts(builder: WorldBuilder) -> list[int]:
    """Slots that are rewritten now; their Deployments are as the API server has them afterwards."""
    applied = [plan.index for plan in plan_engine(builder.world, chat(builder), NOW).apply]
    for index in applied:
        builder.version += 1
        changed = replace(slot(builder, index), template=template_of(chat(builder)), resource_version=builder.version)
        builder.put(changed)
    return applied


def comes_back(builder: WorldBuilder, index: int) -> None:
    """The old pod of a slot is gone, and a new one serves."""
    for pod in [pod for pod in builder.world.pods.values() if pod.labels.get("sluice.dev/slot") == str(index)]:
        builder.store.remove(pod.key, pod.uid)
    builder.slot(chat(builder), index, "n1")


def test_rollout_restarts_the_next_replica_when_the_one_before_serves_again() -> None:
    """Seen: the old pod still served when its slot had been rewritten, and both replicas went down together."""
    builder = parse("pool: 2 gpus | chat: 2 replicas, floor 1")
    respec(builder)
    assert restarts(builder) == [0]
    assert restarts(builder) == [], "the pod of slot 0 still serves as the spec was, and is about to go"
    comes_back(builder, 0)
    assert restarts(builder) == [1]
    comes_back(builder, 1)
    assert restarts(builder) == []


def test_rollout_waits_for_a_slot_whose_borrower_is_still_there() -> None:
    """Seen: the borrower was suspended, nothing was lent any more, and the last replica that served was restarted."""
    loan = Loan()
    training(loan)
    respec(loan.builder)
    loan.put(loan.stage_job, deleting=True)
    assert restarts(loan.builder) == []
    status = planned_status(loan.builder.world, loan.engine, NOW)
    assert status.conditions[0].reason == Reason.ROLLOUT_WAITS_FOR_RETURN
