"""With which Secrets pods pull their images."""

from typing import Any

import pytest

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPoolSpec
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.stages import Stage
from sluice_operator.manifests.engine import slot_deployment
from sluice_operator.manifests.scale_up import scale_up_pod
from sluice_operator.settings import Settings
from tests.unit.manifests.examples import CLAIM, CUDA, ENGINE, JOB, PULLED, SERVED_PULLED, WITH_PULL_SECRETS, stage_job


def pods_of(job: FineTuneJob, engine: InferenceEngine, settings: Settings) -> list[dict[str, Any]]:
    """The pod of each stage, of one that asks for a node, and of a replica."""
    pool = GPUPoolSpec()
    workloads = [
        *(stage_job(job, stage, 1, settings, CLAIM if stage is Stage.TRAIN else None) for stage in Stage),
        slot_deployment(engine, 0, 1, "digest", pool=pool, settings=settings),
    ]
    asking = scale_up_pod(job, 0, "default", pool, [], settings)
    return [*(workload["spec"]["template"]["spec"] for workload in workloads), asking["spec"]]


@pytest.mark.parametrize(
    ("job", "engine", "settings", "names"),
    [
        (JOB, ENGINE, CUDA, None),
        (JOB, ENGINE, WITH_PULL_SECRETS, ["registry", "mirror"]),
        (PULLED, SERVED_PULLED, CUDA, ["team-registry"]),
        (PULLED, SERVED_PULLED, WITH_PULL_SECRETS, ["team-registry"]),
    ],
    ids=["none", "the chart's", "the spec's", "the spec's in place of the chart's"],
)
def test_pull_secrets_are_the_spec_s_or_else_the_chart_s(
    job: FineTuneJob, engine: InferenceEngine, settings: Settings, names: list[str] | None
) -> None:
    expected = [{"name": name} for name in names] if names else None
    assert [pod.get("imagePullSecrets") for pod in pods_of(job, engine, settings)] == [expected] * 5
