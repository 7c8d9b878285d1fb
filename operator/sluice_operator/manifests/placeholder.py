"""The pod that keeps a lent slot's GPUs for its engine. It never runs."""

from sluice_api.gpupool import GPUPoolSpec
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import PLACEHOLDER_GATE, PLACEHOLDER_LABEL, SLOT_LABEL, placeholder_name
from sluice_operator.manifests import pod
from sluice_operator.manifests.metadata import app_labels, owned_by
from sluice_operator.settings import Settings
from sluice_operator.writes import Manifest


def placeholder(engine: InferenceEngine, index: int, *, pool: GPUPoolSpec, settings: Settings) -> Manifest:
    """A pod behind a gate that nobody opens, of a priority just below the engines'.

    It asks for the slot's GPUs and nothing else: cpu and memory that the borrower does not use are free for others.
    """
    labels = {
        **app_labels("placeholder", engine.metadata.name),
        PLACEHOLDER_LABEL: engine.metadata.name,
        SLOT_LABEL: str(index),
    }
    gpus = pod.engine_gpus({"requests": {}, "limits": {}}, pool, engine.spec)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": owned_by(engine, placeholder_name(engine.metadata.name, index), labels),
        "spec": {
            "schedulingGates": [{"name": PLACEHOLDER_GATE}],
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "priorityClassName": settings.placeholder_priority_class,
            "nodeSelector": pool.node_selector,
            "tolerations": pod.tolerated(pool.counted_as, pool.tolerations),
            "securityContext": pod.POD_SECURITY,
            "containers": [
                {
                    "name": "placeholder",
                    "image": settings.server_image,
                    "imagePullPolicy": settings.image_pull_policy,
                    "resources": gpus,
                    "securityContext": pod.CONTAINER_SECURITY,
                }
            ],
        },
    }
