"""What the builders make in the tests: one of each, from resources as a user writes them."""

import json
from functools import partial
from typing import Any

import yaml

from sluice_api.claim import Claim, NodeAllocation, Share, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPoolSpec, Sharing, SharingMode
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.publish import Publish
from sluice_api.stages import ExportResult, Stage
from sluice_operator.manifests import stage_job as building
from sluice_operator.manifests.adapter import adapter
from sluice_operator.manifests.devices import slot_gpus, training_gpus
from sluice_operator.manifests.engine import agent_access, engine_service, slot_deployment
from sluice_operator.manifests.network_policy import engine_policy, job_policy
from sluice_operator.manifests.placeholder import placeholder
from sluice_operator.manifests.scale_up import scale_up_pod
from sluice_operator.manifests.stage_job import group_service
from sluice_operator.observe.views import Address
from sluice_operator.settings import Network, Settings

stage_job = partial(building.stage_job, seconds=3660)
"""With a deadline of its own."""

JOB = FineTuneJob.parse(
    yaml.safe_load("""
        apiVersion: sluice.dev/v1alpha1
        kind: FineTuneJob
        metadata: {name: support-tone, namespace: team-a, uid: 0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9}
        spec:
          model: {uri: "pvc://models/smollm2-135m-instruct"}
          dataset: {uri: "pvc://datasets/support.jsonl"}
          output: {uri: "pvc://adapters/support"}
          resources: {gpus: 2, memory: 8Gi, cpu: "4"}
          scheduling: {policy: Preempt}
          publish: {engine: chat, name: support-tone}
    """)
)
ENGINE = InferenceEngine.parse(
    yaml.safe_load("""
        apiVersion: sluice.dev/v1alpha1
        kind: InferenceEngine
        metadata: {name: chat, namespace: team-a, uid: 9f8e7d6c-5b4a-3928-1706-f5e4d3c2b1a0}
        spec:
          model: {uri: "pvc://models/smollm2-135m-instruct"}
          replicas: 2
          resources: {gpus: 1, memory: 4Gi}
          lora: {maxAdapters: 4, maxRank: 16, volumeClaims: [adapters]}
          preemption: {policy: ScaleDown, minReplicas: 1}
    """)
)
CLAIM = Claim(
    pool="default",
    resource="nvidia.com/gpu",
    gpus=2,
    places=(NodeAllocation(node="gpu-1", borrowed=(SlotRef(namespace="team-a", engine="chat", index=1),)),),
    term=3,
)
GROUP_JOB = JOB.model_copy(
    update={"spec": JOB.spec.model_copy(update={"resources": JOB.spec.resources.model_copy(update={"nodes": 3})})}
)
GROUP_CLAIM = CLAIM.model_copy(update={"places": (*CLAIM.places, NodeAllocation(node="gpu-2", pods=2))})
PUBLISH = Publish(engine="chat", name="support-tone")
EXPORT = ExportResult(
    uri="pvc://adapters/support/support-tone-0a1b2c3d/export",
    digest=f"sha256:{'5e' * 32}",
    rank=16,
    size_bytes=4_884_296,
)
CUDA = Settings(
    namespace="sluice-system",
    pod_name="sluice-operator-0",
    report_url="http://sluice-progress.sluice-system.svc:8080",
    trainer_image="example/sluice-trainer:0.1.0",
    server_image="example/sluice-server:0.1.0",
)
CPU = Settings(**{**vars(CUDA), "server_image": "example/sluice-server-cpu:0.1.0", "device": "cpu"})
H100 = GPUPoolSpec(node_selector={"example.com/gpu": "h100"})

ELDERS = [GPUPoolSpec(node_selector={"example.com/gpu": "h200"}), GPUPoolSpec(node_selector={"tier": "a", "rack": "7"})]
DRA = GPUPoolSpec(sharing=Sharing(mode=SharingMode.DRA))
HAMI = GPUPoolSpec(sharing=Sharing(mode=SharingMode.HAMI, replicas=10))


def _sharing(mode: SharingMode) -> Claim:
    share = Share(mode=mode, percent=30)
    places = (NodeAllocation(node="gpu-1"),)
    return Claim(pool="default", resource="nvidia.com/gpu", gpus=1, places=places, share=share, term=3)


CHAT_1 = SlotRef(namespace="team-a", engine="chat", index=1)
DRA_CLAIM = Claim(
    pool="default", resource="gpu.nvidia.com", gpus=2, places=(NodeAllocation(node="gpu-1"),), own_devices=2, term=3
)
DRA_BORROWER = DRA_CLAIM.model_copy(update={"places": CLAIM.places, "own_devices": 1})
DRA_GUEST = DRA_CLAIM.model_copy(
    update={
        "gpus": 1,
        "places": (NodeAllocation(node="gpu-1", beside=CHAT_1),),
        "own_devices": 0,
        "share": Share(mode=SharingMode.DRA, percent=30),
    }
)


def _trains_by_dra(job: FineTuneJob, claim: Claim) -> list[dict[str, Any]]:
    """A training Job, and what its pods get devices of their own from."""
    template = training_gpus(job, claim)
    return [stage_job(job, Stage.TRAIN, 1, CUDA, claim), *([template] if template else [])]


def with_spec(resource: Any, **spec: Any) -> Any:
    """The same resource with other fields of its spec, as YAML has them."""
    body = resource.model_dump(mode="json", by_alias=True, exclude_none=True)
    return type(resource).parse({**body, "spec": {**body["spec"], **spec}})


API_SERVERS = (Address("10.0.7.4", 6443), Address("10.0.7.5", 6443), Address("10.96.0.1", 443))
INGRESS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}
MIRROR = {"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}], "ports": [{"port": 8443, "protocol": "TCP"}]}
OPEN = Settings(**{**vars(CUDA), "network": Network(clients_from=(INGRESS,), egress=(MIRROR,), metrics_from=())})
FROM_THE_HUB = {"uri": "hf://org/model@main"}
ASKED_BY_TEAM_B = with_spec(
    ENGINE,
    model=FROM_THE_HUB,
    clients={"from": "Selected", "namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "team-b"}}},
)
FETCHING_JOB = with_spec(JOB, model=FROM_THE_HUB, dataset={"uri": "https://data.example.com:8443/rows.jsonl"})
NO_VOLUMES = with_spec(
    JOB,
    model={**FROM_THE_HUB, "credentials": {"secret": "hub"}},
    dataset={
        "sources": [
            {"uri": "s3://rows/support/*.jsonl", "credentials": {"secret": "read-rows"}},
            {"uri": "configmap://house-rules/rows.jsonl"},
        ],
        "validation": {"uri": "hf://datasets/org/held-out", "credentials": {"secret": "hub"}},
    },
    output={"uri": "s3://results/support", "credentials": {"secret": "write-results"}},
)
"""A job that has nothing on a volume."""

FETCHED = with_spec(
    ENGINE,
    model={
        "uri": "s3://models/llama",
        "credentials": {"secret": "models"},
        "cacheClaim": "cache",
        "chatTemplate": {"uri": "configmap://templates/support.jinja"},
    },
    lora={"volumeClaims": [], "credentials": {"secret": "adapters"}},
)

GOLDEN: dict[str, list[dict[str, Any]]] = {
    "engine-network-policy": [engine_policy(ENGINE, API_SERVERS, CUDA)],
    "engine-network-policy-with-clients": [engine_policy(ASKED_BY_TEAM_B, API_SERVERS, OPEN)],
    "job-network-policy": [job_policy(JOB, CUDA)],
    "job-network-policy-group-from-the-hub": [
        job_policy(with_spec(FETCHING_JOB, resources={"gpus": 2, "nodes": 3}), OPEN)
    ],
    "prepare-job": [stage_job(JOB, Stage.PREPARE, 1, CUDA)],
    "prepare-job-without-volumes": [stage_job(NO_VOLUMES, Stage.PREPARE, 1, CUDA)],
    "trainer-job-without-volumes": [stage_job(NO_VOLUMES, Stage.TRAIN, 1, CUDA, CLAIM)],
    "trainer-job-lora": [stage_job(JOB, Stage.TRAIN, 2, CUDA, CLAIM)],
    "trainer-job-group": [group_service(GROUP_JOB), stage_job(GROUP_JOB, Stage.TRAIN, 1, CUDA, GROUP_CLAIM)],
    "trainer-job-shared-hami": [stage_job(JOB, Stage.TRAIN, 1, CUDA, _sharing(SharingMode.HAMI))],
    "slot-deployment-hami": [slot_deployment(ENGINE, 0, 1, "4f1c2a9be07d3358", pool=HAMI, settings=CUDA)],
    "trainer-job-dra": _trains_by_dra(JOB, DRA_CLAIM),
    "trainer-job-dra-borrows": _trains_by_dra(JOB, DRA_BORROWER),
    "trainer-job-dra-beside": _trains_by_dra(JOB, DRA_GUEST),
    "slot-deployment-dra": [
        slot_deployment(ENGINE, 1, 1, "4f1c2a9be07d3358", pool=DRA, settings=CUDA),
        slot_gpus(ENGINE, 1, DRA),
    ],
    "export-job": [stage_job(JOB, Stage.EXPORT, 1, CUDA)],
    "slot-deployment-cuda": [slot_deployment(ENGINE, 0, 1, "4f1c2a9be07d3358", pool=H100, settings=CUDA)],
    "slot-deployment-cpu": [slot_deployment(ENGINE, 1, 0, "4f1c2a9be07d3358", pool=GPUPoolSpec(), settings=CPU)],
    "slot-deployment-fetched": [slot_deployment(FETCHED, 0, 1, "4f1c2a9be07d3358", pool=H100, settings=CUDA)],
    "engine-network-policy-fetched": [engine_policy(FETCHED, API_SERVERS, CUDA)],
    "placeholder": [placeholder(ENGINE, 1, pool=H100, settings=CUDA)],
    "scale-up-pod": [scale_up_pod(GROUP_JOB, 2, "h100", H100, [], CUDA)],
    "scale-up-pod-away-from-others": [scale_up_pod(JOB, 0, "default", GPUPoolSpec(), ELDERS, CUDA)],
    "engine-service": [engine_service(ENGINE)],
    "agent-access": agent_access(ENGINE),
    "adapter": [adapter(JOB, PUBLISH, EXPORT)],
}
"""File in tests/golden -> the manifests in it."""


PULLED = JOB.model_copy(update={"spec": JOB.spec.model_copy(update={"image_pull_secrets": ("team-registry",)})})
"""A job that names its pull secrets."""
SERVED_PULLED = ENGINE.model_copy(
    update={"spec": ENGINE.spec.model_copy(update={"image_pull_secrets": ("team-registry",)})}
)
WITH_PULL_SECRETS = Settings(**{**vars(CUDA), "image_pull_secrets": ("registry", "mirror")})


def pod_specs() -> dict[str, dict[str, Any]]:
    """Each pod that the builders make, by the file that it is in."""
    workloads = {name: manifests[0] for name, manifests in GOLDEN.items() if "template" in manifests[0].get("spec", {})}
    return {name: manifest["spec"]["template"]["spec"] for name, manifest in workloads.items()}


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """All containers of a pod."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def environment(container: dict[str, Any], name: str) -> Any:
    """A container's environment variable that holds JSON."""
    return json.loads(next(variable["value"] for variable in container["env"] if variable["name"] == name))
