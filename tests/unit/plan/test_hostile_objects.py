"""Single objects that a tenant may write, each hostile in its own way: others' decisions stay, and pods can be made."""

import json
from typing import Any

import pytest

from sluice_api.dataset import FieldNames
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPoolSpec
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.model import Model
from sluice_api.stages import Stage
from sluice_operator.manifests.engine_pod import engine_pod_spec
from sluice_operator.manifests.network_policy import engine_policy, job_policy
from sluice_operator.manifests.stage_job import stage_job
from sluice_operator.observe.parse import Unreadable, parse
from sluice_operator.writes import Manifest
from tests.unit.manifests.examples import CUDA
from tests.unit.plan.hostile import EVIL
from tests.unit.plan.test_hostile import WORLDS, agree

Body = dict[str, Any]
EVERY = 2**63 - 1
TEXT = "\x00\x1b[31m\u202e😀$(HOME)\\"


def an_object(kind: str, spec: Body, *, name: str = "x", status: Any = None, **metadata: Any) -> Body:
    found = {"name": name, "namespace": EVIL, "uid": f"uid-{EVIL}-x", "creationTimestamp": "2026-11-22T11:58:00Z"}
    body = {"apiVersion": "sluice.dev/v1alpha1", "kind": kind, "metadata": {**found, **metadata}, "spec": spec}
    return body if status is None else {**body, "status": status}


def a_job(*, name: str = "x", status: Any = None, annotations: Any = None, **spec: Any) -> Body:
    """A job of the lowest priority, so that it takes nothing from anybody."""
    least: Body = {
        "model": {"uri": "pvc://models/base"},
        "dataset": {"uri": "pvc://datasets/rows.jsonl"},
        "output": {"uri": "pvc://adapters/out"},
        "scheduling": {"priority": -1000},
    }
    more = {} if annotations is None else {"annotations": annotations}
    return an_object("FineTuneJob", {**least, **spec}, name=name, status=status, **more)


def an_engine(*, name: str = "mine", status: Any = None, **spec: Any) -> Body:
    least: Body = {"model": {"uri": "pvc://models/base"}, "replicas": 0}
    return an_object("InferenceEngine", {**least, **spec}, name=name, status=status)


def an_adapter(**spec: Any) -> Body:
    return an_object("Adapter", {"engine": "mine", "source": {"uri": "pvc://adapters/out"}, **spec}, name="a" * 63)


def attempts(*found: Body) -> Body:
    return {"sluice.dev/outcomes": json.dumps({"attempts": found})}


TRAINED = {"stage": "Train", "attempt": 1, "reason": "TrainerFailed"}
FILES = {"uri": "https://h:99999/?" + "\x01" * 900, "fields": dict.fromkeys(FieldNames.model_fields, (TEXT * 99)[:128])}
OBJECTS: dict[str, Body] = {
    "largest texts": a_job(
        model={"uri": "pvc://m/" + "m" * 504, "chatTemplate": {"inline": (TEXT * 2000)[:12_288]}},
        dataset={
            "sources": [FILES] * 16,
            "validation": FILES,
            "steps": [{"filter": {"words": [(TEXT * 9)[:64]] * 32, "languages": ["en"] * 32}}] * 8,
        },
    ),
    "names at their limits": a_job(
        name="j" * 63, publish={"engine": "e" * 63, "name": "a" * 63}, managedBy=f"a/{'b' * 251}"
    ),
    "names that are none": a_job(
        dataset={"uri": "configmap://a..b/rows"}, imagePullSecrets=["a..b"], output={"uri": "pvc://x/y"}
    ),
    "hosts that are none": a_job(
        dataset={"sources": [{"uri": uri} for uri in ("https://\u2100/", "https://h:0/", "https://a..b")]}
    ),
    "numbers of an older version": a_job(
        training={"learningRate": "1e999999999", "adamBeta1": "9" * 24, "weightDecay": "1e-999999999"},
        dataset={"uri": "pvc://d/x", "sources": [], "steps": [{"filter": {"maxRepetition": "1e9999999"}}]},
    ),
    "numbers that are none": a_job(training={"epochs": float("nan"), "batchSize": float("inf")}),
    "integers beyond all": a_job(resources={"gpus": 10**400, "nodes": EVERY}),
    "half a surrogate": a_job(model={"uri": "pvc://m/x", "chatTemplate": {"inline": "\ud800"}}),
    "half a surrogate in the record": a_job(annotations={"sluice.dev/outcomes": '{"published": "\\ud800"}'}),
    "deep record": a_job(annotations={"sluice.dev/outcomes": '{"attempts":' + "[" * 60_000}),
    "large annotations": a_job(annotations={f"a/{n}": "x" * 60_000 for n in range(4)} | attempts(*[TRAINED] * 900)),
    "record of everything": a_job(
        annotations=attempts(
            *({**TRAINED, "attempt": n, "message": TEXT * 100, "step": 2**53 - 1, "by": TEXT} for n in range(1, 30))
        )
    ),
    "deep spec": a_job(lora=json.loads("[" * 900 + "]" * 900)),
    "status is no object": a_job(status=["x"] * 1000),
    "status of everything": a_job(
        status={
            "conditions": [
                {"type": TEXT, "status": "True", "reason": TEXT, "lastTransitionTime": "2026-01-01T00:00:00Z"}
            ]
            * 16,
            "attempt": EVERY,
            "progress": {"step": EVERY, "totalSteps": EVERY, "attempt": EVERY, "secondsLeft": EVERY},
            "allocation": {
                "gpus": EVERY,
                "nodes": [TEXT] * 64,
                "borrowed": [{"engine": "team/chat", "slot": EVERY}] * 64,
            },
            "data": {"rows": EVERY},
        },
        annotations=attempts(TRAINED),
    ),
    "engine's numbers of an older version": an_engine(serving={"gpuMemoryUtilization": "1e9999999"}),
    "engine with the largest texts": an_engine(
        name="e" * 50,
        model={"uri": "s3://bucket/" + "x" * 500, "chatTemplate": {"inline": (TEXT * 2000)[:12_288]}},
        servedNames=["x" * 128] * 16,
        lora={"volumeClaims": [f"{'c' * 60}{n}" for n in range(16)], "credentials": {"secret": "s" * 253}},
    ),
    "engine's status of everything": an_engine(
        status={"slots": [{"index": n, "state": "Lent", "lentTo": "team/a", "pod": TEXT} for n in range(1000)]}
    ),
    "adapter": an_adapter(source={"uri": "hf://" + "a/" * 250 + "a", "digest": "sha256:" + "0" * 64}),
    "adapter of its own engine": an_adapter(engine="a" * 63),
}
SET_ASIDE = {"numbers that are none", "integers beyond all", "half a surrogate", "deep spec"}


def can_be_written(manifest: Manifest) -> bool:
    """Whether it is text that the API server takes, of less than etcd's 1.5 MiB."""
    return len(json.dumps(manifest, ensure_ascii=False).encode()) < 1_500_000


@pytest.mark.parametrize("what", OBJECTS)
@pytest.mark.parametrize("world", WORLDS[:2])
def test_hostile_object_changes_no_other_decision(world: str, what: str) -> None:
    agree(world, [OBJECTS[what]])


@pytest.mark.parametrize("what", OBJECTS)
def test_pods_of_a_hostile_object_can_be_made_or_it_is_set_aside(what: str) -> None:
    """What is set aside says why, in a text that can be written."""
    raw = OBJECTS[what]
    found = parse(raw["kind"], {**raw, "metadata": {**raw["metadata"], "resourceVersion": "7"}})
    assert isinstance(found, Unreadable) is (what in SET_ASIDE), found
    match found:
        case Unreadable():
            assert found.error
            assert len(found.error.encode()) <= 4000
        case FineTuneJob():
            for stage in (Stage.PREPARE, Stage.EXPORT):
                assert can_be_written(stage_job(found, stage, 1, CUDA, seconds=60))
            assert can_be_written(job_policy(found, CUDA))
        case InferenceEngine():
            assert can_be_written(engine_pod_spec(found, 0, GPUPoolSpec(), CUDA))
            assert can_be_written(engine_policy(found, (), CUDA))
        case _:
            assert isinstance(found, Model)
