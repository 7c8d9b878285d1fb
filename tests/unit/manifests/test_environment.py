"""What a pod is told of its spec: all of it, however large the API server lets it be, and not a character else."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest

from sluice_api import pods
from sluice_api.dataset import FieldNames
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPoolSpec
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.slots import SlotSpec
from sluice_api.stages import Stage, StageSpec
from sluice_operator.manifests.engine_pod import engine_pod_spec
from tests.unit.manifests.examples import CUDA, ENGINE, JOB, containers, stage_job

LARGEST_VARIABLE = 128 << 10
"""MAX_ARG_STRLEN of Linux: bytes, with the name, `=` and a NUL."""
READ = "import sys; from sluice_api import pods; sys.stdout.buffer.write(pods.told(sys.argv[1]).encode())"
CHARACTERS = ["a", '"', "é", "😀", "\x01", "$", "$(HOME)"]


def expanded(value: str, known: dict[str, str]) -> str:
    """A variable's value as the kubelet gives it to a container.

    https://github.com/kubernetes/kubernetes/blob/master/third_party/forked/golang/expansion/expand.go
    """
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda m: "$" if m[0] == "$$" else known.get(m[1], m[0]), value)


def started(container: dict[str, Any]) -> dict[str, str]:
    """The environment in which the container's program starts."""
    environment: dict[str, str] = {}
    for variable in container["env"]:
        environment[variable["name"]] = expanded(variable["value"], environment)
    return environment


def heard(container: dict[str, Any], name: str) -> str:
    """What a real process, started in the container's environment, reads of its spec."""
    environment = started(container)
    for variable, value in environment.items():
        assert len(f"{variable}={value}".encode()) < LARGEST_VARIABLE
    environment |= {"PYTHONPATH": os.environ["PYTHONPATH"], "HOME": "/"}
    command = [sys.executable, "-c", READ, name]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout.decode()


def text(characters: str, length: int) -> str:
    return (characters * length)[:length]


def largest_job(characters: str) -> FineTuneJob:
    """A job with as much free text as its fields take."""

    def files() -> dict[str, Any]:
        fields = {name: text(characters, 128) for name in FieldNames.model_fields}
        return {"uri": text(f"https://h/{text(characters, 1014)}", 1024), "fields": fields, "config": "c" * 128}

    words = [f"{number:02}{text(characters, 62)}" for number in range(32)]
    dataset = {
        "sources": [files() for _ in range(16)],
        "validation": files(),
        "steps": [{"filter": {"words": words}}] * 8,
    }
    spec = {
        **JOB.spec.model_dump(by_alias=True, exclude_none=True),
        "model": {"uri": "pvc://models/tiny", "chatTemplate": {"inline": text(characters, 12_288)}},
        "dataset": dataset,
        "lora": {"targetModules": [f"{number:03}{'l' * 125}" for number in range(64)]},
    }
    return FineTuneJob.parse({**JOB.model_dump(by_alias=True, exclude_none=True), "spec": spec})


def largest_engine(characters: str) -> InferenceEngine:
    """An engine with as much free text as its fields take."""
    spec = {
        **ENGINE.spec.model_dump(by_alias=True, exclude_none=True),
        "model": {"uri": "pvc://models/tiny", "chatTemplate": {"inline": text(characters, 12_288)}},
        "servedNames": [f"{number:02}{'s' * 126}" for number in range(16)],
        "serving": {"allowedMediaDomains": [f"{number:02}{'d' * 251}" for number in range(32)]},
    }
    return InferenceEngine.parse({**ENGINE.model_dump(by_alias=True, exclude_none=True), "spec": spec})


@pytest.mark.parametrize("characters", CHARACTERS)
def test_trainer_of_the_largest_job_starts_and_is_told_all(characters: str) -> None:
    job = largest_job(characters)
    (trainer,) = stage_job(job, Stage.PREPARE, 1, CUDA)["spec"]["template"]["spec"]["containers"]
    assert StageSpec.model_validate_json(heard(trainer, pods.STAGE_ENV)).spec == job.spec


@pytest.mark.parametrize("characters", CHARACTERS)
def test_containers_of_the_largest_engine_start_and_are_told_all(characters: str) -> None:
    engine = largest_engine(characters)
    for container in containers(engine_pod_spec(engine, 0, GPUPoolSpec(), CUDA)):
        slot = SlotSpec.model_validate_json(heard(container, pods.SLOT_ENV))
        assert (slot.spec.model, slot.spec.serving) == (engine.spec.model, engine.spec.serving)


@pytest.mark.parametrize("length", [1, 29_999, 30_000, 30_001, 90_000])
def test_what_variables_tell_is_read_back(length: int) -> None:
    said = text("abc", length)
    told = pods.variables("SAID", said)
    assert pods.told("SAID", told) == said
    assert len(told) == -(-length // 30_000)
