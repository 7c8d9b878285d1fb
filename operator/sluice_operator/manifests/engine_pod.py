"""The pod of an engine's slot: vLLM, and beside it the agent, which alone holds an API token.

A model that is in no volume is fetched by a container that ends before the agent starts, and alone has what opens its
address. The agent is a native sidecar: it starts before vLLM and stops after it. Readiness is its word alone, so
that a slot serves while the operator is down.
"""

from dataclasses import dataclass

from sluice_api import pods
from sluice_api.gpupool import GPUPoolSpec
from sluice_api.inferenceengine import Clients, InferenceEngine, InferenceEngineSpec, LendingPolicy, Preemption
from sluice_api.slots import SlotSpec
from sluice_api.sources import Credentials, claims_of, config_maps_of, is_object, volume_path
from sluice_operator.manifests import pod
from sluice_operator.manifests.devices import of_slot, with_claims
from sluice_operator.settings import Settings
from sluice_operator.writes import Manifest

_AGENT_RESOURCES: Manifest = {
    "requests": {"cpu": "50m", "memory": "128Mi", "ephemeral-storage": "64Mi"},
    "limits": {"memory": "512Mi", "ephemeral-storage": "1Gi"},
}
_MODEL_RESOURCES: Manifest = {
    "requests": {"cpu": "100m", "memory": "256Mi", "ephemeral-storage": "64Mi"},
    "limits": {"memory": "2Gi", "ephemeral-storage": "2Gi"},
}
"""Of the container that fetches: what it writes to the cache is no memory of its own but for the page cache."""
_NO_SECOND_CACHE = {"HF_XET_CHUNK_CACHE_SIZE_BYTES": "0"}
"""The hub's client would keep pieces of what it fetches in its HOME too."""
_API_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_API_TOKEN_VOLUME: Manifest = {
    "name": "api-token",
    "projected": {
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ]
    },
}
"""What the API server would mount into every container by itself; here the agent's only."""


def agent_account(engine: InferenceEngine) -> str:
    """Name of the ServiceAccount, Role and RoleBinding of the engine's agents."""
    return f"{engine.metadata.name}-agent"


def engine_pod_spec(engine: InferenceEngine, index: int, pool: GPUPoolSpec, settings: Settings) -> Manifest:
    """The pod of one slot, for the nodes of its pool."""
    spec = engine.spec
    mounts = _Mounts.of(spec)
    devices = of_slot(engine, index) if pool.by_dra else []
    slot = SlotSpec(
        namespace=engine.metadata.namespace,
        engine=engine.metadata.name,
        index=index,
        spec=_what_a_replica_is(spec),
        device=settings.device,
    )
    return {
        "terminationGracePeriodSeconds": spec.preemption.drain_timeout_seconds + pods.GRACE_MARGIN_SECONDS,
        "serviceAccountName": agent_account(engine),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "priorityClassName": settings.inference_priority_class,
        "nodeSelector": pool.node_selector,
        "tolerations": pod.tolerated(pool.counted_as, pool.tolerations),
        "securityContext": pod.POD_SECURITY,
        **pod.pulled_with(spec.image_pull_secrets, settings),
        "initContainers": [
            *([_model(slot, mounts, settings)] if mounts.fetches_model or mounts.fetches_template else []),
            _agent(slot, mounts, settings),
        ],
        **({"resourceClaims": devices} if devices else {}),
        "containers": [_vllm(slot, mounts, pool, devices, settings)],
        "volumes": [
            pod.own_disk("scratch", spec.resources.ephemeral_storage),
            pod.shared_memory(spec.resources.memory),
            pod.own_disk("agent-scratch", "256Mi"),
            {"name": "shared", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            pod.own_disk("adapters", spec.resources.ephemeral_storage),
            pod.token_volume(settings),
            _API_TOKEN_VOLUME,
            *pod.claim_volumes(mounts.claims),
            *pod.config_map_volumes(mounts.config_maps),
            *pod.secret_volumes(mounts.secrets),
            *mounts.own_volumes(spec),
        ],
    }


@dataclass(frozen=True)
class _Mounts:
    """What the containers of a slot's pod share besides their own disks."""

    claims: tuple[str, ...]
    config_maps: tuple[str, ...]
    secrets: tuple[str, ...]
    fetches_model: bool
    fetches_template: bool
    cache_claim: str | None

    @classmethod
    def of(cls, spec: InferenceEngineSpec) -> "_Mounts":
        model, lora = spec.model, spec.lora
        addresses = {field: uri for field, uri in spec.addresses.items() if field != "model.cacheClaim"}
        credentials = (model.credentials, lora.credentials if lora else None)
        return cls(
            claims=claims_of(*addresses.values()),
            config_maps=config_maps_of(*addresses.values()),
            secrets=tuple(dict.fromkeys(each.secret for each in credentials if each)),
            fetches_model=volume_path(model.uri) is None,
            fetches_template=is_object(addresses.get("model.chatTemplate.uri", "")),
            cache_claim=model.cache_claim,
        )

    def own_volumes(self, spec: InferenceEngineSpec) -> list[Manifest]:
        """The cache, in a claim or on the pod's disk, and a disk for the container that fills it."""
        volumes = []
        if self.cache_claim:
            volumes.append({"name": "cache", "persistentVolumeClaim": {"claimName": self.cache_claim}})
        elif self.fetches_model:
            volumes.append(pod.own_disk("cache", spec.resources.ephemeral_storage))
        if self.fetches_model or self.fetches_template:
            volumes.append(pod.own_disk("model-scratch", "1Gi"))
        return volumes

    def secret(self, credentials: Credentials | None) -> list[Manifest]:
        """Where a container sees the Secret that it needs, and no other."""
        mounts = zip(self.secrets, pod.secret_mounts(self.secrets), strict=True)
        return [mount for name, mount in mounts if credentials and name == credentials.secret]

    def cache(self, *, writes: bool) -> list[Manifest]:
        """Where a container sees the cache: who writes always, if there is one, and others if the model is there."""
        if not (self.fetches_model or (writes and self.cache_claim)):
            return []
        return [{"name": "cache", "mountPath": pods.CACHE, **({} if writes else {"readOnly": True})}]


def _what_a_replica_is(spec: InferenceEngineSpec) -> InferenceEngineSpec:
    """The spec as a pod is told it: scaling the engine or lending more of it must not restart a replica."""
    terms = Preemption(drain_timeout_seconds=spec.preemption.drain_timeout_seconds)
    if spec.preemption.policy is LendingPolicy.SLEEP:
        sleep = {"policy": LendingPolicy.SLEEP, "sleep_level": spec.preemption.sleep_level}
        terms = terms.model_copy(update=sleep)
    unread = {"image_pull_secrets": (), "clients": Clients()}
    return spec.model_copy(update={"replicas": 1, "preemption": terms, **unread})


def _model(slot: SlotSpec, mounts: _Mounts, settings: Settings) -> Manifest:
    model = slot.spec.model
    return {
        "name": pods.MODEL_CONTAINER,
        "image": settings.server_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": pod.python("-m", "sluice_server", "fetch-model"),
        "env": pod.environment(
            pods.variables(pods.SLOT_ENV, slot.to_json()),
            pod.disk_limit(slot.spec.resources.ephemeral_storage),
            _NO_SECOND_CACHE,
            pod.BASE_ENVIRONMENT,
        ),
        "resources": _MODEL_RESOURCES,
        "securityContext": pod.CONTAINER_SECURITY,
        "terminationMessagePath": pods.TERMINATION_FILE,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            # A disk of its own: Python runs code from its HOME, and vLLM must not get at the credentials.
            {"name": "model-scratch", "mountPath": pods.SCRATCH},
            {"name": "shared", "mountPath": pods.SHARED},
            *mounts.cache(writes=True),
            *mounts.secret(model.credentials),
        ],
    }


def _agent(slot: SlotSpec, mounts: _Mounts, settings: Settings) -> Manifest:
    lora = slot.spec.lora
    return {
        "name": "agent",
        "image": settings.server_image,
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",
        "command": pod.python("-m", "sluice_server", "agent"),
        "env": pod.environment(
            pods.variables(pods.SLOT_ENV, slot.to_json()),
            {pods.REPORT_URL_ENV: settings.report_url},
            {**pod.disk_limit(slot.spec.resources.ephemeral_storage), **_NO_SECOND_CACHE} if lora else {},
            pod.BASE_ENVIRONMENT,
        ),
        "ports": [{"name": "agent", "containerPort": pods.AGENT_PORT, "protocol": "TCP"}],
        # vLLM is started when the agent lives: the secret that both share is there by then.
        "startupProbe": _probe("/livez", period_seconds=1, failure_threshold=120),
        # One bad answer is enough: a slot that drains leaves the endpoints within a second.
        "readinessProbe": _probe("/readyz", period_seconds=1, failure_threshold=1),
        "livenessProbe": _probe("/livez", period_seconds=10, failure_threshold=6),
        "resources": _AGENT_RESOURCES,
        "securityContext": pod.CONTAINER_SECURITY,
        "volumeMounts": [
            # A disk of its own: Python runs code from its HOME, and vLLM must not get at the API token.
            {"name": "agent-scratch", "mountPath": pods.SCRATCH},
            {"name": "shared", "mountPath": pods.SHARED},
            {"name": "adapters", "mountPath": pods.ADAPTERS},
            pod.TOKEN_MOUNT,
            {"name": "api-token", "mountPath": _API_TOKEN_PATH, "readOnly": True},
            *pod.claim_mounts(mounts.claims),
            *pod.config_map_mounts(mounts.config_maps),
            *mounts.cache(writes=bool(lora and mounts.cache_claim)),
            *mounts.secret(lora.credentials if lora else None),
        ],
    }


def _probe(path: str, *, period_seconds: int, failure_threshold: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": "agent"},
        "periodSeconds": period_seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failure_threshold,
    }


def _vllm(slot: SlotSpec, mounts: _Mounts, pool: GPUPoolSpec, devices: list[Manifest], settings: Settings) -> Manifest:
    wanted = slot.spec.resources
    resources = pod.main_resources(wanted.cpu, wanted.memory, wanted.ephemeral_storage)
    resources = pod.engine_gpus(resources, pool, slot.spec)
    return {
        "name": "vllm",
        "image": settings.server_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": pod.python("-m", "sluice_server", "vllm"),
        "env": pod.environment(
            pods.variables(pods.SLOT_ENV, slot.to_json()),
            pod.disk_limit(wanted.ephemeral_storage),
            pod.BASE_ENVIRONMENT,
        ),
        "ports": [{"name": "http", "containerPort": pods.SERVE_PORT, "protocol": "TCP"}],
        "lifecycle": {"preStop": {"exec": {"command": ["python3", "-m", "sluice_server", "wait-drained"]}}},
        "resources": with_claims(resources, devices) if devices else resources,
        "securityContext": pod.CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            pod.SCRATCH_MOUNT,
            pod.SHM_MOUNT,
            {"name": "shared", "mountPath": pods.SHARED, "readOnly": True},
            {"name": "adapters", "mountPath": pods.ADAPTERS, "readOnly": True},
            *pod.claim_mounts(mounts.claims),
            *pod.config_map_mounts(mounts.config_maps),
            *mounts.cache(writes=False),
        ],
    }
