"""What happens: nodes, engines whose load follows the hours of the day, and jobs that arrive."""

import math
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Annotated

import yaml
from pydantic import Field, PositiveFloat, PositiveInt

from sluice_api.model import Model
from sluice_api.scheduling import Interruption


class NodeGroup(Model):
    """Nodes of one size."""

    count: PositiveInt
    gpus: PositiveInt


class TracedEngine(Model):
    """An engine whose autoscaler asks for so many replicas in each hour of the day, of one GPU each."""

    name: str
    floor: int = Field(ge=0)
    replicas: Annotated[tuple[int, ...], Field(min_length=24, max_length=24)]
    start_seconds: PositiveFloat = 90.0

    def at(self, now: datetime) -> int:
        """Replicas that should serve."""
        return self.replicas[now.hour]


class TracedJob(Model):
    """A job that arrives, and how long it trains when nothing disturbs it."""

    arrives_minutes: float = Field(ge=0)
    trains_minutes: PositiveFloat
    gpus: PositiveInt = 1
    priority: int = 0
    interruption: Interruption = Interruption()


class Trace(Model):
    """Days of a cluster."""

    name: str
    days: PositiveInt
    nodes: tuple[NodeGroup, ...]
    engines: tuple[TracedEngine, ...]
    jobs: tuple[TracedJob, ...]
    starts_seconds: PositiveFloat = 60.0
    """From a trainer's pod on its node to its first step."""


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
            TracedEngine(name="chat", floor=5, replicas=(10,) * 24),
            TracedEngine(name="embed", floor=2, replicas=(4,) * 24),
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
    """An engine whose load is highest in the early afternoon; it keeps half of what it wants at least."""
    wave = [(1 - math.cos(2 * math.pi * (hour - 2) / 24)) / 2 for hour in range(24)]
    return TracedEngine(name=name, floor=night, replicas=tuple(round(night + (day - night) * share) for share in wave))


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


def whole_hours(trace: Trace, start: datetime) -> list[datetime]:
    """The moments at which autoscalers write."""
    return [start + timedelta(hours=hour) for hour in range(24 * trace.days)]
