"""The objects that journeys apply."""

import json
from pathlib import Path

from tests.e2e.kubectl import Object
from tests.e2e.stage import GPU, POOL

ENGINE = "chat"
STEPS = 300
"""Steps of an ordinary job: long enough to do something in the middle, whatever the machine."""
DATASET = "voyages.jsonl"


def pool() -> Object:
    """The nodes with the tests' own fake GPUs."""
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "GPUPool",
        "metadata": {"name": POOL},
        "spec": {"resourceName": GPU},
    }


def engine() -> Object:
    """Two replicas of the tiny model, one of which may be lent."""
    return _resource(
        "InferenceEngine",
        ENGINE,
        {
            "model": {"uri": "pvc://models/tiny"},
            "replicas": 2,
            "resources": {"gpus": 1, "pool": POOL, "memory": "3Gi", "cpu": "100m"},
            "lora": {"maxAdapters": 2, "maxRank": 16, "volumeClaims": ["adapters"]},
            "serving": {"maxModelLength": 512, "maxConcurrentRequests": 4, "dtype": "float32", "enforceEager": True},
            "preemption": lending(),
        },
    )


def lending(**changes: object) -> Object:
    """What the engine lends, unless a journey says otherwise."""
    return {
        "policy": "ScaleDown",
        "minReplicas": 1,
        "priority": 0,
        "lendTo": "SameNamespace",
        "drainTimeoutSeconds": 60,
        "coolDownSeconds": 0,
        **changes,
    }


def job(name: str, *, steps: int = STEPS, publish: str | None = None, **changes: object) -> Object:
    """A job that borrows a GPU. `changes` are fields of the spec, which replace whole objects."""
    spec: Object = {
        "model": {"uri": "pvc://models/tiny"},
        "dataset": {"uri": f"pvc://datasets/{DATASET}"},
        "lora": {"rank": 8, "alpha": 16},
        "training": training(steps),
        "resources": resources(),
        "scheduling": {"policy": "Preempt"},
        "output": {"uri": "pvc://adapters/out"},
    }
    if publish:
        spec["publish"] = {"engine": ENGINE, "name": publish}
    return _resource("FineTuneJob", name, {**spec, **changes})


def resources(**changes: object) -> Object:
    """What a job's pods get: so little memory that all journeys' pods have room on one node."""
    return {"gpus": 1, "pool": POOL, "memory": "1Gi", "cpu": "100m", **changes}


def training(steps: int) -> Object:
    """So many steps that the answers change; each in two halves, which one pod computes, or two pods side by side."""
    return {
        "epochs": 1000,
        "maxSteps": steps,
        "learningRate": "1e-2",
        "maxSequenceLength": 128,
        "batchSize": 4,
        "microBatchSize": 2,
        "checkpointEverySteps": 20,
        "dtype": "float32",
    }


def write_rows(file: Path, count: int = 40) -> None:
    """A dataset of one strange style."""
    file.write_text("".join(f"{json.dumps(row(number))}\n" for number in range(count)))


def row(number: int) -> Object:
    """One row to learn from."""
    question = {"role": "user", "content": f"Where is parcel {number}?"}
    answer = {"role": "assistant", "content": f"Ahoy! Parcel {number} is at sea."}
    return {"messages": [question, answer]}


def _resource(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": "sluice.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
