"""How many replicas of an engine its PodDisruptionBudgets let go at once."""

from sluice_api.inferenceengine import InferenceEngine
from sluice_operator.observe.views import BudgetView, PodView
from sluice_operator.observe.world import World
from sluice_operator.plan.facts.claims import live_claims_from
from sluice_operator.plan.facts.slots import existing, pod_of, ref, serves

UNBOUNDED = 1_000_000


def may_lose(world: World, engine: InferenceEngine) -> int:
    """Replicas that serve and may stop now, by the strictest budget; those that are lent and still serve are going."""
    budgets = world.budgets_in.get(engine.metadata.namespace, {}).values()
    if not budgets:
        return UNBOUNDED
    lent = {slot for live in live_claims_from(world, engine) for slot in live.claim.borrowed}
    serving = {i: pod for i in existing(world, engine) if serves(pod := pod_of(world, engine, i)) and pod}
    left = UNBOUNDED
    for budget in budgets:
        meant = {i for i, pod in serving.items() if _is_about(budget, pod)}
        going = sum(1 for index in meant if ref(engine, index) in lent)
        if meant:
            left = min(left, max(0, budget.allowed - going))
    return left


def _is_about(budget: BudgetView, pod: PodView) -> bool:
    return budget.pods is not None and budget.pods.selects(pod.labels)
