"""Whether remedies work: what a message tells its reader to do is done in a copy of the world.

Then the job starts, or it waits for something else. state_machine.py asks it of all jobs that wait.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from dev.simulate.builder import GPU, WorldBuilder
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import Reported, identity
from sluice_operator.plan.obstacle import Obstacle, Remedy, Wait
from sluice_operator.plan.pool.allocate import allocate_fenced


def lies(builder: WorldBuilder, now: datetime) -> Iterator[str]:
    """Messages whose remedy does nothing, with what was done."""
    pool = find_pool(builder.world, "default")
    assert pool is not None
    for key, wait in allocate_fenced(builder.world, pool, now).waits.items():
        for way in wait.ways:
            if _has_remedy(way) and (lie := _tried(builder, now, key, wait, way)):
                yield lie


def _has_remedy(way: Sequence[Obstacle]) -> bool:
    """Whether the reader is told what to do about all of its obstacles."""
    return all(obstacle.until or obstacle.remedies for obstacle in way)


def _tried(builder: WorldBuilder, now: datetime, key: Key, wait: Wait, way: Sequence[Obstacle]) -> str:
    """What is wrong with a way's remedies; empty if they work."""
    copy, then = copied(builder), max([now, *(obstacle.until for obstacle in way if obstacle.until)])
    remedies = [obstacle.remedies[0] for obstacle in way if not obstacle.until]
    for remedy in remedies:
        _do(copy, key, remedy)
    pool = find_pool(copy.world, "default")
    assert pool is not None
    after = allocate_fenced(copy.world, pool, then)
    if key in after.claims or key not in after.waits:
        return ""
    still = after.waits[key].ways
    if not still or still[0][0] not in way:
        return ""
    done = ", and ".join(remedy.text for remedy in remedies) or f"wait until {then}"
    return f"{key.name}: {wait.message!r}; after `{done}` it waits for the same: {after.waits[key].message!r}"


def _do(builder: WorldBuilder, waiting: Key, remedy: Remedy) -> None:
    """What a reader does who follows a remedy."""
    key = remedy.key or waiting
    job = builder.world.jobs[waiting]
    if remedy.field:
        _set(builder, key, remedy.field, remedy.value)
    elif remedy.key is None:
        for _ in range(job.spec.resources.nodes):
            builder.node(int(str(remedy.value or job.spec.resources.gpus)))
    elif key.kind == "FineTuneJob":
        _ends(builder, key)
    elif key.kind == "InferenceEngine":
        _rests(builder, key)
    elif key.kind == "Node":
        _mend(builder, key)
    else:
        raise AssertionError(f"nobody knows how to `{remedy.text}`")


def _set(builder: WorldBuilder, key: Key, path: str, value: object) -> None:
    resource = builder.world.resource(key)
    assert resource is not None, key
    body = resource.model_dump(mode="json", by_alias=True, exclude_none=True)
    *parents, last = path.split(".")
    at: Any = body.setdefault("spec", {})
    for name in parents:
        at = at[int(name)] if name.isdecimal() else at.setdefault(name, {})
    at[last] = value
    body["metadata"]["resourceVersion"] = str(builder._next()[0])
    builder.put(type(resource).model_validate(body))


def _ends(builder: WorldBuilder, key: Key) -> None:
    """A job is over and gone, with all that it had."""
    world, job = builder.world, builder.world.jobs[key]
    for stage_job in list(world.stage_jobs_of.get(identity(job), {}).values()):
        for pod in list(world.pods_of.get(identity(stage_job), {}).values()):
            builder.store.remove(pod.key, pod.uid)
        builder.store.remove(stage_job.key, stage_job.uid)
    builder.store.remove(key, job.metadata.uid)


def _rests(builder: WorldBuilder, key: Key) -> None:
    """An engine has nothing to do."""
    for index in range(builder.world.engines[key].spec.replicas):
        for pod in builder.world.engine_pods.get((key.namespace, key.name, index), {}).values():
            if reported := builder.world.reports.get(pod.uid):
                report = reported.report.model_copy(update={"in_flight": 0})
                builder.store.findings.report(pod.uid, Reported(report, reported.at, 0.0))


def _mend(builder: WorldBuilder, key: Key) -> None:
    """A node has all that anybody could ask of it, but for GPUs."""
    node = builder.world.nodes[key]
    plenty = {name: 10 * amount for name, amount in node.allocatable.items() if name != GPU}
    builder.put(
        replace(
            node,
            resource_version=builder._next()[0],
            ready=True,
            cordoned=False,
            taints=(),
            allocatable={**plenty, GPU: node.allocatable.get(GPU, 0)},
        )
    )


def copied(builder: WorldBuilder) -> WorldBuilder:
    """The same world in another store."""
    copy, world = WorldBuilder(), builder.world
    copy.version, copy.clock, copy.counted_as, copy.nodes = (
        builder.version,
        builder.clock,
        builder.counted_as,
        [*builder.nodes],
    )
    copy.store.serves_dra = builder.store.serves_dra
    for table in builder.store._tables.values():
        for thing in table.objects.values():
            copy.store.put(thing, seen=not (hasattr(thing, "seen") and not thing.seen))
    copy.store.findings.begin_term(world.term, world.since or builder.clock)
    copy.store.findings.since = world.since
    for uid, report in world.reports.items():
        copy.store.findings.report(uid, report)
    for uid, heartbeat in world.heartbeats.items():
        copy.store.findings.heartbeat(uid, heartbeat)
    return copy
