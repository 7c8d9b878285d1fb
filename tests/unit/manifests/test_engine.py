"""Engine slots: what a golden file does not say."""

from typing import Any

import pytest

from sluice_api import pods
from sluice_api.gpupool import GPUPoolSpec
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.slots import SlotSpec
from sluice_operator.facts.slots import template_of
from sluice_operator.manifests.engine import agent_access, engine_service, slot_deployment
from tests.unit.manifests.examples import CPU, CUDA, ENGINE, containers, environment


def with_spec(**changes: Any) -> InferenceEngine:
    body = ENGINE.model_dump(by_alias=True, exclude_none=True)
    return InferenceEngine.parse({**body, "spec": {**body["spec"], **changes}})


def template(engine: InferenceEngine, index: int = 0, size: int = 1, pool: GPUPoolSpec | None = None) -> dict[str, Any]:
    manifest = slot_deployment(engine, index, size, "digest", pool=pool or GPUPoolSpec(), settings=CUDA)
    found: dict[str, Any] = manifest["spec"]["template"]
    return found


@pytest.mark.parametrize(
    ("change", "restarts"),
    [
        ({"replicas": 7}, False),
        ({"clients": {"from": "Anywhere"}}, False),
        ({"preemption": {"policy": "Never", "minReplicas": 3, "priority": 5, "lendTo": "Anywhere"}}, False),
        ({"preemption": {"policy": "ScaleDown", "sleepLevel": 2}}, False),
        ({"preemption": {"policy": "Sleep"}}, True),
        ({"preemption": {"drainTimeoutSeconds": 90}}, True),
        ({"model": {"uri": "pvc://models/other"}}, True),
        ({"serving": {"maxModelLength": 4096}}, True),
        ({"serving": {"allowedMediaDomains": ["images.example.org"]}}, True),
        ({"lora": {"maxAdapters": 5, "volumeClaims": ["adapters"]}}, True),
        ({"resources": {"gpus": 2, "memory": "4Gi"}}, True),
        ({"resources": {"memory": "4Gi", "ephemeralStorage": "90Gi"}}, True),
        ({"imagePullSecrets": ["registry"]}, True),
    ],
    ids=str,
)
def test_replica_restarts_only_if_its_template_changes(change: dict[str, Any], restarts: bool) -> None:
    assert (template(with_spec(**change)) != template(ENGINE)) is restarts
    assert (template_of(with_spec(**change)) != template_of(ENGINE)) is restarts


def test_another_version_of_the_operator_alone_restarts_no_replica() -> None:
    """The digest is what operators of the first version had worked out."""
    assert template_of(ENGINE) == "506761f30709c7e8"


def test_a_slot_keeps_its_pod_when_its_size_changes() -> None:
    assert template(ENGINE, size=0) == template(ENGINE, size=1)


def test_slot_spec_is_in_both_containers() -> None:
    for container in containers(template(ENGINE, index=1)["spec"]):
        told = SlotSpec.model_validate(environment(container, pods.SLOT_ENV))
        assert (told.namespace, told.engine, told.index) == ("team-a", "chat", 1)
        assert told.spec.model == ENGINE.spec.model
        assert told.spec.preemption.drain_timeout_seconds == ENGINE.spec.preemption.drain_timeout_seconds


def test_sleep_level_is_in_the_slot_spec_but_not_min_replicas() -> None:
    terms = {"policy": "Sleep", "sleepLevel": 2, "drainTimeoutSeconds": 60}
    engine = with_spec(preemption={**terms, "minReplicas": 1})
    for container in containers(template(engine)["spec"]):
        assert SlotSpec.model_validate(environment(container, pods.SLOT_ENV)).sleep_level == 2
    assert template(engine) == template(with_spec(preemption={**terms, "minReplicas": 2, "reclaim": "OnDemand"}))
    assert template(engine) != template(with_spec(preemption={**terms, "sleepLevel": 1}))


def test_device_is_the_server_image_s() -> None:
    manifest = slot_deployment(ENGINE, 0, 1, "digest", pool=GPUPoolSpec(), settings=CPU)
    (vllm,) = manifest["spec"]["template"]["spec"]["containers"]
    assert environment(vllm, pods.SLOT_ENV)["device"] == "cpu"


def test_gpus_have_the_pools_resource_name_and_node_selector() -> None:
    pool = GPUPoolSpec(resource_name="amd.com/gpu", node_selector={"zone": "b"})
    pod = template(ENGINE, pool=pool)["spec"]
    (vllm,) = pod["containers"]
    assert vllm["resources"]["limits"]["amd.com/gpu"] == vllm["resources"]["requests"]["amd.com/gpu"] == "1"
    assert pod["nodeSelector"] == {"zone": "b"}
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["amd.com/gpu"]


def test_volume_claim_of_model_and_adapters_is_mounted_once() -> None:
    engine = with_spec(lora={"volumeClaims": ["models", "adapters"]})
    pod = template(engine)["spec"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert claims == ["models", "adapters"]
    for container in containers(pod):
        assert all(m["readOnly"] for m in container["volumeMounts"] if m["mountPath"].startswith("/volumes/"))


def test_termination_grace_period_covers_drain_timeout_seconds() -> None:
    pod = template(with_spec(preemption={"drainTimeoutSeconds": 120}))["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120 + pods.GRACE_MARGIN_SECONDS


def test_the_service_selects_the_pods_of_every_slot_and_of_no_job() -> None:
    selector = engine_service(ENGINE)["spec"]["selector"]
    for index in range(2):
        assert selector.items() <= template(ENGINE, index=index)["metadata"]["labels"].items()


def test_agents_read_their_own_engine_only() -> None:
    _, role, binding = agent_access(ENGINE)
    engines, adapters = role["rules"]
    assert engines["resourceNames"] == ["chat"]
    assert {verb for rule in (engines, adapters) for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert binding["subjects"][0]["name"] == template(ENGINE)["spec"]["serviceAccountName"]
