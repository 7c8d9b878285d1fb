"""Others' pods always wait for a GPU, of the placeholders' priority and below it. None gets one that is lent."""

import os

import pytest

from tests.integration.claim_scene import REQUEUED, ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import Kube

pytestmark = pytest.mark.integration

LOANS = int(os.environ.get("SLUICE_LOANS", "6"))
WAITING = {"stranger-equal": "sluice-placeholder", "stranger-lower": ""}
"""Pods that wait all the while, and their priority classes."""


@pytest.mark.timeout(180 + 20 * LOANS)
async def test_no_stranger_gets_a_gpu_that_is_lent_or_comes_back(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator, kube: Kube
) -> None:
    """Seen to fail, at the first return of each run, without placeholders."""
    await nodes.add(f"{namespace}-n1", gpus=2)
    operator()
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    for name, priority_class in WAITING.items():
        await kube.call("POST", f"/api/v1/namespaces/{namespace}/pods", stranger(name, priority_class))

    for number in range(LOANS):
        job = f"loan-{number}"
        await scene.job(job)
        if number % 2:  # its claim is taken over by a second attempt
            await scene.finishes(job, outcome=REQUEUED)
            await scene.finishes(job, attempt=2)
        else:
            await scene.finishes(job)
        await scene.serves(2)
    bound = {v.name for v in scene.history.ordered("pods") if v.name in WAITING and v.body["spec"].get("nodeName")}
    assert not bound, "a stranger got a GPU"
    await scene.history.until(lambda: not placeholders(scene), "no placeholder is left")


def placeholders(scene: ClaimScene) -> list[str]:
    """Names of the placeholders that are there."""
    return [name for name in scene.history.now["pods"] if name.endswith("-placeholder")]


def stranger(name: str, priority_class: str) -> dict[str, object]:
    """A pod that wants one GPU."""
    gpu = {"requests": {"nvidia.com/gpu": "1"}, "limits": {"nvidia.com/gpu": "1"}}
    spec: dict[str, object] = {"containers": [{"name": "main", "image": "nothing", "resources": gpu}]}
    if priority_class:
        spec["priorityClassName"] = priority_class
    return {"metadata": {"name": name}, "spec": spec}
