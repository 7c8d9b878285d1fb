"""Placeholders: what keeps a lent slot's GPUs for its engine, so that at the return no stranger's pod is faster.

kube-scheduler gives a GPU that becomes free to whichever waiting pod it tries first, and the slot's own pod is not
there yet. A placeholder is a pod that never runs, nominated to the node for as long as the loan lasts: pods of its
priority and below see its GPUs as taken; the trainer, which is above, does not. At the return the slot's pod takes the
nomination over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import SLOT_LABEL
from sluice_operator.observe.views import PodView
from sluice_operator.observe.world import World, oldest_first
from sluice_operator.plan.slots import SlotPlan, pod_of

_POD_WITHIN = timedelta(seconds=5)
"""A slot that has started has its pod by then. If not, a quota that counts the placeholder too may be why."""


@dataclass(frozen=True, slots=True)
class Placeholders:
    """What is to be done about an engine's placeholders, in this order."""

    nominate: tuple[tuple[PodView, str], ...] = ()
    """Pods, each with its node: a slot's pod that takes a place over, or a placeholder whose maker was killed."""
    make: tuple[tuple[int, str], ...] = ()
    """Slots that need one, each with the node."""
    remove: tuple[PodView, ...] = ()
    again_at: datetime | None = None


def plan_placeholders(world: World, engine: InferenceEngine, plans: Sequence[SlotPlan], now: datetime) -> Placeholders:
    """Keep the GPUs of each lent slot from the moment it drains, until its next pod has them or nobody wants them."""
    held = _placeholders(world, engine)
    lent = [plan for plan in plans if plan.lent_to]
    returning = [plan for plan in plans if plan.size and not plan.lent_to and plan.index in held]
    starting = {plan.index: _pod_due(engine, plan, now) for plan in returning}
    kept = {
        **{plan.index: plan.node for plan in lent},
        **{i: held[i].nominated_node for i, due in starting.items() if now < due and not pod_of(world, engine, i)},
    }
    return Placeholders(
        nominate=(
            *((held[i], node) for i, node in kept.items() if i in held and not held[i].nominated_node),
            *_handed_over(world, engine, {i: held[i] for i in starting}),
        ),
        make=tuple((plan.index, plan.node) for plan in lent if plan.index not in held),
        remove=tuple(pod for i, pod in held.items() if i not in kept or pod.nominated_node not in ("", kept[i])),
        again_at=min((due for i, due in starting.items() if i in kept), default=None),
    )


def _placeholders(world: World, engine: InferenceEngine) -> dict[int, PodView]:
    """Those of an engine, by slot: a placeholder's name is the slot's, so there is one at most."""
    held = world.placeholders.get((engine.metadata.namespace, engine.metadata.name), {}).values()
    return {int(pod.labels[SLOT_LABEL]): pod for pod in oldest_first(held) if not pod.deleting}


def _pod_due(engine: InferenceEngine, plan: SlotPlan, now: datetime) -> datetime:
    """When a slot that starts has its pod at the latest, counted from when the engine's status first said so."""
    said = next((slot for slot in engine.status.slots if slot.index == plan.index), None)
    since = said.since if said and (said.state, said.pod) == (plan.state, "") else None
    return (since or now) + _POD_WITHIN


def _handed_over(world: World, engine: InferenceEngine, held: Mapping[int, PodView]) -> list[tuple[PodView, str]]:
    """Pods of slots that start, are there, and have no node yet: each is nominated to its placeholder's."""
    pods = ((pod_of(world, engine, index), placeholder.nominated_node) for index, placeholder in held.items())
    return [(pod, node) for pod, node in pods if pod and node and not (pod.node or pod.nominated_node or pod.deleting)]
