"""What happens: nodes, engines whose load follows the hours of the day, and jobs that arrive."""

import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Annotated

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from sluice_api.gpupool import GPUPoolSpec
from sluice_api.inferenceengine import LendingPolicy, LendTo, Preemption
from sluice_api.model import Model, Name
from sluice_api.scheduling import Interruption
from sluice_api.selectors import Labels

TEAM = "team"
_NOT_PLAYED = {
    "sleep_level": "engines that sleep are not played; leave it out",
    "reclaim_above": "requests are not played, only replicas; leave it out, reclaim: OnDemand follows the replicas",
    "drain_timeout_seconds": "requests are not played, so a drain takes no time; leave it out",
    "node_selector": "all nodes of a trace are the pool's; leave it out",
    "resource_name": "the GPUs of a trace have no other name; leave it out",
    "sharing": "every GPU of a trace is one pod's; leave it out",
    "price_per_gpu_hour": "prices are not counted; leave it out",
}
"""Fields of an engine's and a pool's own that would change nothing here: a trace that has one is refused."""


class NodeGroup(Model):
    """Nodes of one size."""

    count: PositiveInt
    gpus: PositiveInt


class TracedEngine(Model):
    """An engine whose autoscaler asks for so many replicas in each hour of the day, of one GPU each."""

    name: str
    namespace: Name = TEAM
    preemption: Preemption = Preemption()
    """What it lends when Sluice shares the cluster, as in an InferenceEngine."""
    replicas: Annotated[tuple[int, ...], Field(min_length=24, max_length=24)]
    start_seconds: PositiveFloat = 90.0

    @field_validator("preemption")
    @classmethod
    def is_played(cls, terms: Preemption) -> Preemption:
        """Refuse what has no effect here, and what the API server would refuse."""
        _refuse_not_played(terms)
        if terms.policy is LendingPolicy.SLEEP:
            raise ValueError("policy: engines that sleep are not played; write ScaleDown")
        if (terms.lend_to is LendTo.SELECTED) != (terms.lend_to_namespaces is not None):
            raise ValueError("lendToNamespaces: belongs to lendTo: Selected; write both or neither")
        for number, window in enumerate(terms.borrow_windows):
            if window.start == window.end:
                raise ValueError(f"borrowWindows[{number}].end: write another end: this window never opens")
            if window.zone is None:
                raise ValueError(f"borrowWindows[{number}].timeZone: there is no time zone {window.time_zone}")
        return terms

    def at(self, now: datetime) -> int:
        """Replicas that should serve."""
        return self.replicas[now.hour]


class TracedJob(Model):
    """A job that arrives, and how long it trains when nothing disturbs it."""

    arrives_minutes: float = Field(ge=0)
    trains_minutes: PositiveFloat
    namespace: Name = TEAM
    gpus: PositiveInt = 1
    priority: int = 0
    interruption: Interruption = Interruption()


class Trace(Model):
    """Days of a cluster; the first is a Monday, and hours are UTC."""

    name: str
    days: PositiveInt
    nodes: tuple[NodeGroup, ...]
    pool: GPUPoolSpec = GPUPoolSpec()
    """Quotas, ageing and who is allowed, as in a GPUPool."""
    namespaces: Mapping[Name, Labels] = Field(default_factory=dict)
    """Labels by which the pool's and the engines' selectors may choose; names go without saying."""
    engines: tuple[TracedEngine, ...]
    jobs: tuple[TracedJob, ...]
    starts_seconds: PositiveFloat = 60.0
    """From a trainer's pod on its node to its first step."""

    @field_validator("engines")
    @classmethod
    def is_named_once(cls, engines: tuple[TracedEngine, ...]) -> tuple[TracedEngine, ...]:
        """Refuse two engines of one name, in different namespaces too."""
        if len({engine.name for engine in engines}) < len(engines):
            raise ValueError("give each engine a name of its own")
        return engines

    @field_validator("pool")
    @classmethod
    def is_played(cls, pool: GPUPoolSpec) -> GPUPoolSpec:
        """Refuse what has no effect here."""
        _refuse_not_played(pool)
        return pool


def _refuse_not_played(spec: Preemption | GPUPoolSpec) -> None:
    for field in sorted(spec.model_fields_set & _NOT_PLAYED.keys()):
        raise ValueError(f"{type(spec).model_fields[field].alias}: {_NOT_PLAYED[field]}")


def read(file: Path) -> Trace:
    """A trace from a YAML file.

    Raises:
        pydantic.ValidationError: it names the field and what is wrong with it.
    """
    return Trace.model_validate(yaml.safe_load(file.read_text()))


def office(seed: int = 1) -> Trace:
    """Two engines that are busy by day; jobs of one or two GPUs that people submit in office hours."""
    random = Random(seed)
    return Trace(
        name="office",
        days=3,
        nodes=(NodeGroup(count=3, gpus=8),),
        engines=(_daily("chat", 3, 12), _daily("search", 2, 8)),
        jobs=_arrivals(random, [random.gauss(13, 3) for _ in range(28)], 3, (30, 180), (1, 1, 1, 2)),
    )


def steady(seed: int = 1) -> Trace:
    """Engines with the same load day and night, sized for peaks that seldom come; small jobs all day."""
    random = Random(seed)
    return Trace(
        name="steady",
        days=2,
        nodes=(NodeGroup(count=2, gpus=8),),
        engines=(
            TracedEngine(name="chat", preemption=_down_to(5), replicas=(10,) * 24),
            TracedEngine(name="embed", preemption=_down_to(2), replicas=(4,) * 24),
        ),
        jobs=_arrivals(random, [random.uniform(0, 24) for _ in range(100)], 2, (15, 60), (1,)),
    )


def nightly(seed: int = 1) -> Trace:
    """A batch of jobs of mixed sizes at midnight that may be interrupted, and a few urgent ones by day."""
    random = Random(seed)
    gives_way = Interruption.model_validate({"policy": "ToHigherPriority", "minRunSeconds": 600})
    batch = _arrivals(random, [0.0] * 24, 3, (60, 240), (1, 2, 4), interruption=gives_way)
    urgent = _arrivals(random, [random.uniform(9, 18) for _ in range(4)], 3, (20, 60), (1, 2), priority=10)
    return Trace(
        name="nightly",
        days=3,
        nodes=(NodeGroup(count=3, gpus=8),),
        engines=(_daily("chat", 4, 16),),
        jobs=tuple(sorted((*batch, *urgent), key=lambda job: job.arrives_minutes)),
    )


MADE = {"office": office, "steady": steady, "nightly": nightly}


def _daily(name: str, night: int, day: int) -> TracedEngine:
    """An engine whose load is highest in the early afternoon; it never lends what it has at night."""
    wave = [(1 - math.cos(2 * math.pi * (hour - 2) / 24)) / 2 for hour in range(24)]
    replicas = tuple(round(night + (day - night) * share) for share in wave)
    return TracedEngine(name=name, preemption=_down_to(night), replicas=replicas)


def _down_to(floor: int) -> Preemption:
    return Preemption(policy=LendingPolicy.SCALE_DOWN, min_replicas=floor)


def _arrivals(
    random: Random, hours: list[float], days: int, minutes: tuple[float, float], gpus: tuple[int, ...], **fields: object
) -> tuple[TracedJob, ...]:
    """The same number of jobs each day, about those hours."""
    found = [
        TracedJob.model_validate(
            {
                "arrives_minutes": max(0.0, day * 1440 + hour * 60 + random.uniform(-20, 20)),
                "trains_minutes": random.uniform(*minutes),
                "gpus": random.choice(gpus),
                **fields,
            }
        )
        for day in range(days)
        for hour in hours
    ]
    return tuple(sorted(found, key=lambda job: job.arrives_minutes))
