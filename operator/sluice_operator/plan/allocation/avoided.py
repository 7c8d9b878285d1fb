"""Nodes that a job leaves out for a while, because an attempt of it failed there."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from sluice_api.claim import AttemptOutcome
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.observe.world import World
from sluice_operator.plan.allocation.inventory import Stock
from sluice_operator.plan.facts.after import Avoids, after
from sluice_operator.plan.facts.outcomes import all_outcomes, recorded
from sluice_operator.plan.facts.room import most_pods, need_of
from sluice_operator.plan.obstacle import Obstacle


@dataclass(frozen=True, slots=True)
class Avoided:
    """A node that is left out."""

    node: str
    until: datetime
    rule: Avoids

    @property
    def obstacle(self) -> Obstacle:
        """Why its pods do not go there now."""
        message = f"{self.node} is left out until {self.until:%H:%M:%S} UTC, as {self.rule.why}."
        return Obstacle(Reason.NODE_AVOIDED, message, self.until)


def avoided(world: World, stock: Stock, job: FineTuneJob, now: datetime) -> Mapping[str, Avoided]:
    """The nodes of a pool that a job leaves out now, by name."""
    attempts = all_outcomes(world, job).of(Stage.TRAIN)
    found = {one.node: one for one in _avoided(attempts) if now < one.until and one.node in stock.nodes}
    if all(not one.rule.unless_last for one in found.values()) or _fits_without(stock, job, found):
        return found
    return {node: one for node, one in found.items() if not one.rule.unless_last}


def avoided_until(job: FineTuneJob) -> Iterator[datetime]:
    """When nodes that a job leaves out are looked at again."""
    return (one.until for one in _avoided(recorded(job).of(Stage.TRAIN)))


def _avoided(attempts: Iterable[AttemptOutcome]) -> Iterator[Avoided]:
    for outcome in attempts:
        rule = after(outcome.reason).avoids
        if rule and outcome.ended_at and outcome.node:
            yield Avoided(outcome.node, outcome.ended_at + rule.lasts, rule)


def _fits_without(stock: Stock, job: FineTuneJob, left_out: Mapping[str, Avoided]) -> bool:
    """Whether the pool's other nodes, when empty, have room for all pods of a job."""
    wanted = job.spec.resources
    nodes = (node for node in stock.nodes.values() if not node.refusal and node.name not in left_out)
    return sum(most_pods(node.node, node.gpus, wanted.gpus, need_of(wanted)) for node in nodes) >= wanted.nodes
