"""A World written in one line, and an allocation read as one.

    pool: 2 gpus | chat: 2 replicas, floor 1, in flight 9 0 | a: needs 1

`pool: 2 4 gpus` are two nodes, n1 and n2. An engine's replicas are bound to nodes in order and serve,
unless `ready K` says that only the first K do. A job is ready for GPUs; `on n1` gives it a bound claim,
`takes chat/1 on n1` one that borrows. A job that `yields` gives way to a higher priority at once; one that `scales`
asks for nodes first. An engine that `sleeps` keeps its pods while it lends, in a `pool: 2 gpus, dra`.
"""

import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from dev.simulate.builder import GPU, NOW, PREPARED, WorldBuilder
from sluice_api.claim import Claim, SlotRef
from sluice_api.inferenceengine import InferenceEngine, InferenceEngineStatus
from sluice_api.reports import EngineReport
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.views import Key, NodeRequirement, PodView, StageJobView, VolumeClaimView, VolumeView
from sluice_operator.observe.world import Reported, World, job_key, key_of, pool_key
from sluice_operator.plan.engine.decide import plan_engine
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.job.situation import JobDecision
from sluice_operator.plan.pool.allocate import Allocation, allocate_fenced
from sluice_operator.settings import Limits
from sluice_operator.status.engine import engine_status

YIELDS = {"policy": "ToHigherPriority", "minRunSeconds": 0}


def parse(text: str) -> WorldBuilder:
    """Read the notation of this module's first lines."""
    builder = WorldBuilder()
    parts = [part.strip().split(": ", 1) for part in text.split("|")]
    free: dict[str, int] = {}
    for name, words in parts:
        if name == "pool":
            if "dra" in words:
                builder.dra_pool()
            free = {builder.node(int(gpus)).key.name: int(gpus) for gpus in re.findall(r"\d+", words)}
        elif name == "strangers":
            for gpus, node in re.findall(r"(\d+) on (n\d+)", words):
                builder.stranger(node, int(gpus))
                free[node] -= int(gpus)
    for name, words in sorted(parts, key=lambda part: " on n" not in part[1]):
        if "needs" in words:
            _parse_job(builder, name, words, free)
    for name, words in parts:
        if "replicas" in words:
            _parse_engine(builder, name, words, free)
    return builder


def _number(words: str, name: str, default: int) -> int:
    found = re.search(rf"{name} (-?\d+)", words)
    return int(found.group(1)) if found else default


def _parse_engine(builder: WorldBuilder, name: str, words: str, free: dict[str, int]) -> None:
    replicas = int(words.split(" replicas", maxsplit=1)[0])
    gpus = _number(words, "gpus", 1)
    engine = builder.engine(
        name,
        replicas,
        resources={"gpus": gpus},
        preemption={
            "policy": "Never" if "never" in words else "Sleep" if "sleeps" in words else "ScaleDown",
            "minReplicas": _number(words, "floor", 0),
            "priority": _number(words, "priority", 0),
            "lendTo": "Anywhere" if "anywhere" in words else "SameNamespace",
        },
    )
    lent = {
        slot.index
        for view in builder.world.claiming.values()
        if view.claim
        for slot in view.claim.borrowed
        if slot.engine == name
    }
    in_flight = re.search(r"in flight ([\d ]+)", words)
    busy = [int(count) for count in in_flight.group(1).split()] if in_flight else []
    for index in range(replicas):
        if index in lent:
            builder.slot(engine, index, size=0)
            continue
        node = next((node for node, left in free.items() if left >= gpus), "")
        if not node:
            continue
        free[node] -= gpus
        pod = builder.slot(engine, index, node, ready=index < _number(words, "ready", replicas))
        if pod and index < len(busy):
            builder.report(pod, busy[index])


def _parse_job(builder: WorldBuilder, name: str, words: str, free: dict[str, int]) -> None:
    gpus = _number(words, "needs", 1)
    namespace = re.search(r"in ([a-z]+)", words)
    job = builder.job(
        name,
        gpus,
        namespace.group(1) if namespace else "team",
        scheduling={
            "policy": "Queue" if "queue" in words else "Preempt",
            "priority": _number(words, "priority", 0),
            **({"interruption": YIELDS} if "yields" in words else {}),
            **({"scaleUpFirst": {}} if "scales" in words else {}),
        },
        resources={"nodes": _number(words, "pods", 1)},
    )
    held = re.search(r"(?:takes ([\w/ ]+) )?on (n\d+(?: n\d+)*)", words)
    if held:
        refs = [
            SlotRef(namespace="team", engine=slot.split("/")[0], index=int(slot.split("/")[1]))
            for slot in (held.group(1) or "").split()
        ]
        nodes = held.group(2).split()
        stage_job = builder.stage_job(job, claim=builder.claim(nodes, *refs, gpus=gpus))
        for index, node in enumerate(nodes):
            builder.trainer_pod(stage_job, node, index)
            free[node] -= gpus


def allocated(builder: WorldBuilder, now: datetime = NOW) -> Allocation:
    pool = find_pool(builder.world, "default")
    assert pool is not None
    return allocate_fenced(builder.world, pool, now)


def _preempted(claim: Claim) -> list[str]:
    return list(dict.fromkeys(ref.job for place in claim.places for ref in place.preempted))


def describe(allocation: Allocation) -> str:
    """`a takes chat/1; b takes n1 from c; d waits EngineAtFloor`, by name."""
    said = {
        key.name: "takes "
        + (" ".join(map(str, claim.borrowed)) or " ".join(claim.nodes))
        + (f" from {' '.join(_preempted(claim))}" if claim.preempted else "")
        for key, claim in allocation.claims.items()
    }
    said.update({key.name: f"waits {wait.reason}" for key, wait in allocation.waits.items()})
    return "; ".join(f"{name} {what}" for name, what in sorted(said.items()))


def decide(builder: WorldBuilder, name: str, now: datetime = NOW) -> JobDecision:
    """What a job of namespace `team` needs."""
    return plan_job(builder.world, builder.world.jobs[job_key("team", name)], now, Limits())


def change(builder: WorldBuilder, view: PodView | StageJobView, **changes: Any) -> None:
    """Have an object change."""
    builder.version += 1
    builder.put(replace(view, resource_version=builder.version, **changes))


__all__ = [
    "GPU",
    "NOW",
    "PREPARED",
    "YIELDS",
    "WorldBuilder",
    "allocated",
    "change",
    "decide",
    "describe",
    "key_of",
    "parse",
    "pool_key",
]


def planned_status(world: World, engine: InferenceEngine, now: datetime = NOW) -> InferenceEngineStatus:
    """The status that an engine gets now."""
    return engine_status(world, engine, plan_engine(world, engine, now), now)


def busy_engine(builder: WorldBuilder) -> None:
    """Engine `chat` with four replicas on n1, 7 requests in flight each, that wants 10 at most (reclaimAbove)."""
    terms = {"policy": "ScaleDown", "minReplicas": 1, "reclaim": "OnDemand", "reclaimAbove": 10}
    engine = builder.engine("chat", 4, preemption=terms)
    builder.store.findings.begin_term(1, NOW - timedelta(hours=1))
    for index in range(4):
        pod = builder.slot(engine, index, "n1")
        assert pod is not None
        report = EngineReport(sequence=1, serving=True, draining=False, in_flight=7)
        builder.store.findings.report(pod.uid, Reported(report, NOW, 7.0))


def volume_in_zone(builder: WorldBuilder, namespace: str, claim: str, zone: str) -> None:
    """A volume claim of which the volume can be mounted on nodes of one zone (label `zone`) only."""
    key, volume = Key("PersistentVolumeClaim", namespace, claim), Key("PersistentVolume", "", f"{namespace}-{claim}")
    terms = ((NodeRequirement("zone", "In", (zone,)),),)
    builder.version += 1
    made: dict[str, Any] = {"resource_version": builder.version, "created": NOW}
    builder.put(
        VolumeClaimView(key=key, uid=f"claim-{claim}", volume=volume.name, **made),
        VolumeView(key=volume, uid=f"volume-{claim}", node_terms=terms, **made),
    )
