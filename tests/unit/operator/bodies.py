"""Objects as the API server sends them, with what tests vary and nothing else."""

import json
from typing import Any

from sluice_api.meta import API_VERSION, stage_job_name
from sluice_operator.observe.parse import Stored, Unreadable, parse

Body = dict[str, Any]
CREATED = "2026-01-01T00:00:00Z"


def body(kind: str, name: str, version: int, *, uid: str = "", namespace: str = "team", **more: Any) -> Body:
    """Any object; `metadata` in `more` is merged into its metadata."""
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": uid or f"uid-{name}",
        "resourceVersion": str(version),
        "creationTimestamp": CREATED,
        **more.pop("metadata", {}),
    }
    return {"kind": kind, "metadata": {key: value for key, value in metadata.items() if value}, **more}


def owner(kind: str, name: str, uid: str = "") -> list[Body]:
    return [{"kind": kind, "name": name, "uid": uid or f"uid-{name}", "controller": True}]


def finetunejob(name: str, version: int, *, pool: str = "default", publish: str = "", **more: Any) -> Body:
    spec: Body = {
        "model": {"uri": "pvc://models/tiny"},
        "dataset": {"uri": "pvc://datasets/rows.jsonl"},
        "output": {"uri": "pvc://adapters/out"},
        "resources": {"pool": pool},
    }
    if publish:
        spec["publish"] = {"engine": publish, "name": name}
    return body("FineTuneJob", name, version, apiVersion=API_VERSION, spec=spec, **more)


def engine(name: str, version: int, *, pool: str = "default", **more: Any) -> Body:
    spec = {"model": {"uri": "pvc://models/tiny"}, "resources": {"pool": pool}}
    return body("InferenceEngine", name, version, apiVersion=API_VERSION, spec=spec, **more)


def adapter(name: str, version: int, *, on: str, **more: Any) -> Body:
    spec = {"engine": on, "source": {"uri": "pvc://adapters/out"}}
    return body("Adapter", name, version, apiVersion=API_VERSION, spec=spec, **more)


def attempt_of(job: str) -> str:
    """Name of the Job of a job's first attempt to train."""
    return stage_job_name(job, f"uid-{job}", "Train", 1)


def stage_job(
    job: str,
    version: int,
    *,
    borrows: tuple[tuple[str, int], ...] = (),
    claims: bool = True,
    preempts: str = "",
    pool: str = "default",
    **more: Any,
) -> Body:
    borrowed = [{"namespace": "team", "engine": engine, "index": index} for engine, index in borrows]
    preempted = [{"namespace": "team", "job": preempts, "uid": f"uid-{preempts}-1", "gpus": 1}] if preempts else []
    places = [{"node": "n1", "borrowed": borrowed, "preempted": preempted}]
    claim = {"pool": pool, "resource": "nvidia.com/gpu", "places": places, "gpus": 1, "term": 1}
    metadata = {
        "labels": {"sluice.dev/job": job, "sluice.dev/stage": "Train", "sluice.dev/attempt": "1"},
        "annotations": {"sluice.dev/claim": json.dumps(claim)} if claims else {},
        "ownerReferences": owner("FineTuneJob", job),
        **more.pop("metadata", {}),
    }
    return body("Job", attempt_of(job), version, uid=f"uid-{job}-1", metadata=metadata, **more)


def engine_pod(name: str, version: int, *, engine: str, slot: int = 0, node: str = "", **more: Any) -> Body:
    metadata = {
        "labels": {"sluice.dev/engine": engine, "sluice.dev/slot": str(slot)},
        "ownerReferences": owner("ReplicaSet", f"{engine}-{slot}-rs"),
    }
    return pod(name, version, node=node, metadata=metadata, **more)


def trainer_pod(name: str, version: int, *, job: str, node: str = "", **more: Any) -> Body:
    owners = owner("Job", attempt_of(job), f"uid-{job}-1")
    metadata = {"labels": {"sluice.dev/job": job}, "ownerReferences": owners}
    return pod(name, version, node=node, metadata=metadata, **more)


def pod(name: str, version: int, *, node: str = "", phase: str = "Pending", gpus: int = 1, **more: Any) -> Body:
    container = {"name": "main", "resources": {"requests": {"cpu": "500m", "nvidia.com/gpu": str(gpus)}}}
    spec = {"containers": [container], **({"nodeName": node} if node else {})}
    return body("Pod", name, version, spec=spec, status={"phase": phase}, **more)


def read(raw: Body) -> Stored:
    """The object as the store holds it."""
    parsed = parse(raw["kind"], raw)
    assert not isinstance(parsed, Unreadable), parsed.error
    return parsed
