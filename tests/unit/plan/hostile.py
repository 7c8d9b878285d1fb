"""Objects of a tenant that writes whatever it may: extreme fields, forged labels, owners and annotations.

`evil` is its namespace. Its job is the last in every queue, and nothing else of it asks for GPUs that it could have: so
everybody else's decision has to be the same as without it. test_hostile.py asks that.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import hypothesis.strategies as st

from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import stage_job_name
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.fence import fenced
from sluice_operator.observe.parse import parse
from sluice_operator.observe.world import World, key_of, pool_key
from sluice_operator.plan.engine.decide import EngineDecision, plan_engine
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.pool.allocate import allocate
from sluice_operator.reconcile.pool import engines_concerned
from sluice_operator.settings import Limits
from sluice_operator.status.job import job_status
from sluice_operator.status.pool import pool_usage
from tests.unit.plan.worlds import NOW, WorldBuilder

EVIL = "evil"

TIMES = st.sampled_from(
    [
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59-14:00",
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2199-12-31T23:59:59Z",
        "1970-01-01T00:00:00Z",
        "2026-11-22T11:00:00Z",
        "soon",
        "",
    ]
)
NUMBERS = st.sampled_from([0, 1, -1, 64, 65, 1000, 10**6, 10**12, 2**53, 2**63 - 1, 2**64, 10**400])
TEXTS = st.sampled_from(
    ["", "x", "1e9999999", "\\u202e", "../..", "²", "٣", "9" * 300, "x" * 250_000, "{}", "[]", "null", "[" * 2000]
)
INDICES = st.sampled_from(["0", "1", "7", "99999", "9" * 60, "-1", "x", "²", "٣", ""])


def outcomes() -> st.SearchStrategy[str]:
    """What somebody writes into the annotation in which a job's attempts are kept."""
    attempt = st.fixed_dictionaries(
        {
            "stage": st.sampled_from(["Prepare", "Train", "Export"]),
            "attempt": NUMBERS,
            "reason": st.sampled_from(["Done", "NotBound", "TrainerFailed", "Preempted", "Nonsense"]),
        },
        optional={"endedAt": TIMES, "startedAt": TIMES, "step": NUMBERS, "node": TEXTS},
    )
    prepared = {"stage": "Prepare", "attempt": 1, "reason": "Done", "endedAt": "2026-11-22T11:00:00Z"}
    attempts = st.lists(attempt, max_size=3).map(lambda drawn: json.dumps({"attempts": [prepared, *drawn]}))
    return attempts | TEXTS


def claims() -> st.SearchStrategy[str]:
    """What somebody writes into the annotation that is a claim: of everybody's replicas and training."""
    slot = st.builds(lambda engine, index: {"namespace": "team", "engine": engine, "index": index}, _NAMES, NUMBERS)
    gone = st.builds(
        lambda job, gpus: {"namespace": "team", "job": job, "uid": f"job{job}-team-Train-1-9", "gpus": gpus},
        _JOBS,
        NUMBERS,
    )
    place = st.fixed_dictionaries(
        {"node": st.sampled_from(["n1", "n2", "nowhere"])},
        optional={
            "pods": NUMBERS,
            "borrowed": st.lists(slot, max_size=3),
            "preempted": st.lists(gone, max_size=2),
            "beside": slot,
        },
    )
    claim = st.fixed_dictionaries(
        {
            "pool": st.just("default"),
            "resource": st.sampled_from(["nvidia.com/gpu", "gpu.nvidia.com"]),
            "gpus": NUMBERS.filter(lambda number: number != 1),  # which its job asks for, and might have
            "term": NUMBERS,
            "places": st.lists(place, min_size=1, max_size=3),
        }
    )
    return claim.map(json.dumps) | TEXTS


_NAMES, _JOBS = st.sampled_from(["chat", "mine"]), st.sampled_from(["a", "b", "high"])


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """A job that is the last in the queue."""
    scheduling = {
        "policy": draw(st.sampled_from(["Queue", "Preempt", "Shared"])),
        "priority": -1000,
        **draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "notBefore": TIMES,
                    "scaleUpFirst": st.sampled_from([{}, {"waitSeconds": 604_800}]),
                    "queueDeadlineSeconds": st.sampled_from([1, 31_536_000]),
                    "interruption": st.just({"policy": "ToHigherPriority", "minRunSeconds": 31_536_000}),
                },
            )
        ),
    }
    spec = {
        "model": {"uri": "pvc://models/base"},
        "dataset": {"uri": "pvc://datasets/rows.jsonl"},
        "output": {"uri": "pvc://adapters/out"},
        "resources": {"gpus": 1, "memory": draw(st.sampled_from(["1Gi", "0", "999999999999999999Ti"]))},
        "scheduling": scheduling,
        "activeDeadlineSeconds": draw(st.sampled_from([1, 31_536_000])),
    }
    status = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "finishedAt": TIMES,
                "startedAt": TIMES,
                "progress": st.fixed_dictionaries(
                    {"attempt": NUMBERS, "secondsLeft": NUMBERS, "reportedAt": TIMES, "step": NUMBERS}
                ),
                "queue": st.fixed_dictionaries({"estimatedStart": TIMES, "since": TIMES}),
            },
        )
    )
    annotations = {"sluice.dev/outcomes": draw(outcomes())}
    return _body(
        "FineTuneJob", "x", spec=spec, status=status, annotations=annotations, apiVersion="sluice.dev/v1alpha1"
    )


@st.composite
def engines(draw: st.DrawFn) -> dict[str, Any]:
    """An engine that asks for no replica, on extreme terms."""
    preemption = draw(
        st.fixed_dictionaries(
            {"policy": st.sampled_from(["Never", "ScaleDown", "Sleep"]), "lendTo": st.just("Anywhere")},
            optional={
                "coolDownSeconds": st.sampled_from([0, 86_400]),
                "borrowWindows": st.just([{"start": "20:00", "end": "07:00", "timeZone": "../../etc/passwd"}]),
            },
        )
    )
    slots = st.lists(
        st.fixed_dictionaries(
            {"index": NUMBERS, "state": st.sampled_from(["Starting", "Draining", "Reclaiming", "Waiting", "Lent"])},
            optional={"since": TIMES, "lentTo": st.sampled_from(["team/a", "evil/x", ""]), "pod": st.just("p")},
        ),
        max_size=3,
    )
    spec = {
        "model": {"uri": "pvc://models/base"},
        "replicas": 0,
        "serving": {"gpuMemoryUtilization": draw(st.sampled_from(["0", "1e9999999", "2", "0.5", "9" * 24]))},
        "preemption": preemption,
    }
    return _body("InferenceEngine", "mine", spec=spec, status={"slots": draw(slots)}, apiVersion="sluice.dev/v1alpha1")


@st.composite
def stage_jobs(draw: st.DrawFn) -> dict[str, Any]:
    """A Job made by hand: under its own name or that of the job's first attempt, of its own job or another's."""
    uid = draw(st.sampled_from([f"uid-{EVIL}-x", "joba-team", "jobb-team", "nobody"]))
    name = draw(st.sampled_from([stage_job_name("x", uid, "Train", 1), "anything"]))
    labels = {
        "sluice.dev/job": "x",
        "sluice.dev/stage": draw(st.sampled_from(["Train", "Export", "x"])),
        "sluice.dev/attempt": draw(st.sampled_from(["1", "7", "0", "x", "9" * 30])),
    }
    owner = {"kind": draw(st.sampled_from(["FineTuneJob", "Job"])), "name": "x", "uid": uid, "controller": True}
    done = {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-11-22T11:59:00Z"}]}
    return _body(
        "Job",
        name,
        labels=labels,
        annotations={"sluice.dev/claim": draw(claims())},
        ownerReferences=draw(st.sampled_from([[owner], []])),
        status=draw(st.sampled_from([{}, done])),
    )


@st.composite
def deployments(draw: st.DrawFn) -> dict[str, Any]:
    """A Deployment that calls itself a replica's."""
    owner = {"kind": "InferenceEngine", "name": draw(_NAMES), "uid": "engine-chat", "controller": True}
    return _body(
        "Deployment",
        draw(st.sampled_from(["chat-0", "mine-7", "other"])),
        labels={"sluice.dev/engine": draw(_NAMES), "sluice.dev/slot": draw(INDICES)},
        annotations={"sluice.dev/restarted-at": draw(TIMES), "sluice.dev/template": draw(TEXTS)},
        ownerReferences=[owner],
        spec={"replicas": 1},
    )


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    """A pod that calls itself ours, and takes nothing of any node."""
    labels = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "sluice.dev/job": st.just("x"),
                "sluice.dev/engine": _NAMES,
                "sluice.dev/slot": INDICES,
                "sluice.dev/placeholder": _NAMES,
                "sluice.dev/scale-up": st.just("default"),
                "sluice.dev/stage": st.just("Train"),
                "batch.kubernetes.io/job-completion-index": INDICES,
            },
        )
    )
    kind, name, uid = draw(
        st.sampled_from(
            [("FineTuneJob", "x", f"uid-{EVIL}-x"), ("Job", "x", "joba-team-Train-1-9"), ("ReplicaSet", "r", "r")]
        )
    )
    return _body(
        "Pod",
        "forged",
        labels=labels,
        annotations={"sluice.dev/bound-at": draw(TIMES)},
        ownerReferences=[{"kind": kind, "name": name, "uid": uid, "controller": True}],
        spec={"containers": [{"name": "trainer"}]},
        status={"phase": draw(st.sampled_from(["Pending", "Running", "Failed"])), "nominatedNodeName": "n1"},
    )


def _body(kind: str, name: str, **more: Any) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": EVIL,
        "uid": f"uid-{EVIL}-{name}",
        "creationTimestamp": "2026-11-22T11:58:00Z",
    }
    metadata |= {part: more.pop(part) for part in ("labels", "annotations", "ownerReferences") if part in more}
    return {"kind": kind, "metadata": metadata, **more}


HOSTILE = st.lists(st.one_of(jobs(), engines(), stage_jobs(), deployments(), pods()), min_size=1, max_size=4)


def bring(builder: WorldBuilder, bodies: list[dict[str, Any]]) -> None:
    """Have a watch bring some objects, to a namespace that has the volumes they name."""
    builder.volumes(EVIL)
    for raw in bodies:
        builder.version += 1
        metadata = {**raw["metadata"], "resourceVersion": str(builder.version)}
        builder.put(parse(raw["kind"], {**raw, "metadata": metadata}))


def decisions(builder: WorldBuilder) -> Mapping[str, Any]:
    """What is decided for everybody but the hostile tenant, each behind its fence."""
    world = builder.world
    pool = find_pool(world, "default")
    assert pool is not None

    def of_the_pool(seen: World) -> tuple[Any, ...]:
        allocation = allocate(seen, pool, NOW)
        claimed = {key: claim for key, claim in allocation.claims.items() if key.namespace != EVIL}
        waits = {key: wait for key, wait in allocation.waits.items() if key.namespace != EVIL}
        engines = [key_of(engine) for engine in engines_concerned(seen, take_stock(seen, pool))]
        wakes = [key for key in engines if key.namespace != EVIL]
        return claimed, waits, wakes, pool_usage(seen, pool)

    found: dict[str, Any] = {"pool": fenced(world, pool_key("default"), of_the_pool).decision}
    for engine in world.engines.values():
        mine = fenced(world, key_of(engine), partial(_of_the_engine, engine)).decision
        if engine.metadata.namespace != EVIL:
            found[str(key_of(engine))] = mine
    for job in world.jobs.values():

        def of_the_job(seen: World, job: Any = job) -> Any:
            decision = plan_job(seen, job, NOW, Limits())
            return decision, job_status(seen, job, decision, NOW)

        mine = fenced(world, key_of(job), of_the_job).decision
        if job.metadata.namespace != EVIL:
            found[str(key_of(job))] = mine
    return found


def _of_the_engine(engine: InferenceEngine, seen: World) -> EngineDecision:
    return plan_engine(seen, engine, NOW)
