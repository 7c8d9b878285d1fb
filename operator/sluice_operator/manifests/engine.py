"""What an InferenceEngine owns: a Deployment for each slot, a Service, and the rights of its agents."""

from datetime import datetime

from sluice_api import pods
from sluice_api.gpupool import GPUPoolSpec
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import ENGINE_LABEL, GROUP, RESTARTED_AT_ANNOTATION, SLOT_LABEL, TEMPLATE_ANNOTATION, slot_name
from sluice_operator.manifests.engine_pod import agent_account, engine_pod_spec
from sluice_operator.manifests.metadata import app_labels, owned_by
from sluice_operator.settings import Settings
from sluice_operator.writes import Manifest

SERVICE_PORT = 80


def slot_deployment(
    engine: InferenceEngine,
    index: int,
    size: int,
    template: str,
    *,
    pool: GPUPoolSpec,
    settings: Settings,
    restarted_at: datetime | None = None,
) -> Manifest:
    """The Deployment of one slot, of size 0 or 1. `template` is the digest of what the spec asks of its pod.

    A Deployment for each slot, because a claim names the slots that it borrows and exactly those must stop;
    Recreate, because a slot has GPUs for one pod.
    """
    selector = {ENGINE_LABEL: engine.metadata.name, SLOT_LABEL: str(index)}
    labels = {**app_labels("engine", engine.metadata.name), **selector}
    metadata = owned_by(engine, slot_name(engine.metadata.name, index), labels)
    metadata["annotations"] = {TEMPLATE_ANNOTATION: template}
    if restarted_at is not None:
        metadata["annotations"][RESTARTED_AT_ANNOTATION] = restarted_at.isoformat()
    spec = engine_pod_spec(engine, index, pool, settings)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": size,
            "revisionHistoryLimit": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": selector},
            "template": {"metadata": {"labels": labels, "annotations": {TEMPLATE_ANNOTATION: template}}, "spec": spec},
        },
    }


def engine_service(engine: InferenceEngine) -> Manifest:
    """The Service through which clients reach the ready slots: http://<engine>.<namespace>/v1."""
    labels = {**app_labels("engine", engine.metadata.name), ENGINE_LABEL: engine.metadata.name}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owned_by(engine, engine.metadata.name, labels),
        "spec": {
            "selector": {ENGINE_LABEL: engine.metadata.name},
            "ports": [
                {
                    "name": "http",
                    "port": SERVICE_PORT,
                    "targetPort": pods.SERVE_PORT,
                    "protocol": "TCP",
                    "appProtocol": "http",
                }
            ],
        },
    }


def agent_access(engine: InferenceEngine) -> list[Manifest]:
    """ServiceAccount, Role and RoleBinding of the engine's agents: read this engine, and the adapters beside it."""
    name, rbac = agent_account(engine), "rbac.authorization.k8s.io"
    labels = {**app_labels("engine", engine.metadata.name), ENGINE_LABEL: engine.metadata.name}
    read = ["get", "list", "watch"]
    this_engine = {"apiGroups": [GROUP], "resources": ["inferenceengines"], "resourceNames": [engine.metadata.name]}
    adapters = {"apiGroups": [GROUP], "resources": ["adapters"]}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": owned_by(engine, name, labels),
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "Role",
            "metadata": owned_by(engine, name, labels),
            "rules": [{**this_engine, "verbs": read}, {**adapters, "verbs": read}],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": owned_by(engine, name, labels),
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": engine.metadata.namespace}],
        },
    ]
