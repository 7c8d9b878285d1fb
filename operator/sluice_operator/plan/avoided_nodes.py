"""Which nodes does a job leave out after a failure, and until when?"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from sluice_api.claim import AttemptOutcome
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.facts.fit import most_pods, need_of
from sluice_operator.facts.outcomes import all_outcomes, recorded
from sluice_operator.facts.retries import Avoids, after
from sluice_operator.observe.world import World
from sluice_operator.plan.obstacle import Obstacle
from sluice_operator.plan.stock import Stock


@dataclass(frozen=True, slots=True)
class Avoided:
    """A node that a job leaves out."""

    node: str
    until: datetime
    rule: Avoids

    @property
    def obstacle(self) -> Obstacle:
        """Why the job's pods do not go to the node now."""
        message = f"{self.node} is left out until {self.until:%H:%M:%S} UTC, as {self.rule.why}."
        return Obstacle(Reason.NODE_AVOIDED, message, self.until)


def avoided(world: World, stock: Stock, job: FineTuneJob, now: datetime) -> Mapping[str, Avoided]:
    """The nodes of a pool that a job leaves out now, by name."""
    attempts = all_outcomes(world, job).of(Stage.TRAIN)
    found = {one.node: one for one in _avoided(attempts) if now < one.until and one.node in stock.nodes}
    if all(not one.rule.unless_last for one in found.values()) or _fits_without(world, stock, job, found):
        return found
    return {node: one for node, one in found.items() if not one.rule.unless_last}


def avoided_until(job: FineTuneJob) -> Iterator[datetime]:
    """When each node that a job leaves out may be used again."""
    return (one.until for one in _avoided(recorded(job).of(Stage.TRAIN)))


def _avoided(attempts: Iterable[AttemptOutcome]) -> Iterator[Avoided]:
    for outcome in attempts:
        rule = after(outcome.reason).avoids
        if rule and outcome.ended_at and outcome.node:
            yield Avoided(outcome.node, outcome.ended_at + rule.lasts, rule)


def _fits_without(world: World, stock: Stock, job: FineTuneJob, left_out: Mapping[str, Avoided]) -> bool:
    """Whether all pods of a job would fit the pool's other usable nodes if those were empty."""
    wanted = job.spec.resources
    nodes = (node for node in stock.nodes.values() if not node.unusable and node.name not in left_out)
    return sum(most_pods(world, node.node, node.gpus, wanted.gpus, need_of(wanted)) for node in nodes) >= wanted.nodes
