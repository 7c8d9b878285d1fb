"""The pod by which a job asks a cluster autoscaler for a node. It normally never runs."""

from collections.abc import Sequence
from itertools import product

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPoolSpec
from sluice_api.meta import SCALE_UP_LABEL, scale_up_name
from sluice_api.stages import Stage
from sluice_operator.manifests import pod
from sluice_operator.manifests.metadata import app_labels, owned_by
from sluice_operator.manifests.stage_job import stage_resources
from sluice_operator.settings import Settings
from sluice_operator.writes import Manifest

_SLEEPS = ["python3", "-c", "import signal; signal.pause()"]
"""Should it get a node before Sluice deletes it."""


def scale_up_pod(
    job: FineTuneJob, index: int, pool: str, spec: GPUPoolSpec, elders: Sequence[GPUPoolSpec], settings: Settings
) -> Manifest:
    """A pod that a node must fit which fits the training pod with that index.

    It has no gate: autoscalers pass over pods that have one. It has the placeholders' priority, below all that Sluice
    runs; cluster-autoscaler looks at pods of priority -10 and above. It is gone at once when it is deleted: somebody
    waits for its room.

    Args:
        pool: the pool's name.
        elders: older pools of the same resource: nodes that they select are theirs.
    """
    labels = {**app_labels("scale-up", job.metadata.name), SCALE_UP_LABEL: pool}
    resources = pod.with_gpus(stage_resources(job, Stage.TRAIN), spec.resource_name, job.spec.resources.gpus)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": owned_by(job, scale_up_name(job.metadata.name, job.metadata.uid, index), labels),
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "priorityClassName": settings.placeholder_priority_class,
            "nodeSelector": spec.node_selector,
            **_away_from(elders),
            "tolerations": pod.tolerated(spec.resource_name, spec.tolerations),
            "securityContext": pod.POD_SECURITY,
            **pod.pulled_with(job.spec.image_pull_secrets, settings),
            "containers": [
                {
                    "name": "asks-for-a-node",
                    "image": settings.server_image,
                    "imagePullPolicy": settings.image_pull_policy,
                    "command": _SLEEPS,
                    "resources": resources,
                    "securityContext": pod.CONTAINER_SECURITY,
                }
            ],
        },
    }


def _away_from(elders: Sequence[GPUPoolSpec]) -> Manifest:
    """Not on nodes of other pools: such a node lacks one label at least of each that selects by any."""
    selecting = [elder.node_selector.items() for elder in elders if elder.node_selector]
    if not selecting:
        return {}
    terms = [
        {"matchExpressions": [{"key": key, "operator": "NotIn", "values": [value]} for key, value in lacking]}
        for lacking in product(*selecting)
    ]
    wanted = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"affinity": {"nodeAffinity": wanted}}
