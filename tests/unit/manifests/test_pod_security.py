"""Every pod that Sluice makes keeps the rules of Pod Security `restricted`, and a few of our own.

https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from typing import Any

import pytest

from sluice_api import crd, pods
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.schema import fields_of
from tests.unit.chart.pod_security import violations
from tests.unit.manifests.examples import containers, pod_specs

POD_SPECS = pod_specs()
every_pod = pytest.mark.parametrize("pod", POD_SPECS.values(), ids=POD_SPECS.keys())


def sources(volume: dict[str, Any]) -> list[dict[str, Any]]:
    return list(volume.get("projected", {}).get("sources", []))


def test_pod_specs_are_all_built() -> None:
    assert len(POD_SPECS) == 14


@every_pod
def test_pod_is_restricted(pod: dict[str, Any]) -> None:
    assert violations(pod) == []


@every_pod
def test_scratch_is_writable_and_home_is_there(pod: dict[str, Any]) -> None:
    for container in containers(pod):
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert not mounts[pods.SCRATCH].get("readOnly")
        values = {variable["name"]: variable["value"] for variable in container["env"]}
        assert all(values[name].startswith(pods.SCRATCH) for name in ("HOME", "TMPDIR", "HF_HOME"))


@every_pod
def test_memory_is_limited_to_what_is_requested(pod: dict[str, Any]) -> None:
    *_, main = containers(pod)
    assert main["resources"]["requests"]["memory"] == main["resources"]["limits"]["memory"]
    assert "cpu" not in main["resources"]["limits"]


@every_pod
def test_ephemeral_storage_of_a_pod_is_limited(pod: dict[str, Any]) -> None:
    volumes = [volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume]
    assert volumes
    assert all(volume.get("sizeLimit") for volume in volumes)
    for container in containers(pod):
        for kind in ("requests", "limits"):
            assert container["resources"][kind]["ephemeral-storage"]


@every_pod
def test_service_account_of_a_pod_is_the_agents_or_none(pod: dict[str, Any]) -> None:
    """An engine's under its agents' account, a stage's under the namespace's default one, with no rights of ours."""
    assert pod.get("serviceAccountName") == ("chat-agent" if "initContainers" in pod else None)


def test_no_field_reaches_a_pod_s_account_its_containers_or_their_resources() -> None:
    """Who may write a FineTuneJob or an InferenceEngine need not be one who may write pods."""
    ours = {"serviceAccount", "serviceAccountName", "automountServiceAccountToken", "securityContext", "hostNetwork"}
    ours |= {"containers", "initContainers", "volumes", "env", "envFrom", "command", "args", "image", "template"}
    ours |= {"limits", "requests", "claims", "nodeName", "nodeSelector", "priorityClassName", "runtimeClassName"}
    for resource in (FineTuneJob, InferenceEngine):
        spec = crd.resource_schema(resource)["properties"]["spec"]
        found = {path for path, _ in fields_of(spec, "spec") if path.rpartition(".")[2] in ours}
        assert found <= {"spec.lora.volumeClaims"}  # PersistentVolumeClaims of the namespace, mounted read-only


@every_pod
def test_only_the_agent_holds_an_api_token(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    api_tokens = {
        volume["name"]
        for volume in pod["volumes"]
        for source in sources(volume)
        if "serviceAccountToken" in source and "audience" not in source["serviceAccountToken"]
    }
    holders = {
        container["name"]
        for container in containers(pod)
        for mount in container["volumeMounts"]
        if mount["name"] in api_tokens
    }
    assert holders <= {"agent"}


@pytest.mark.parametrize("slot", ["slot-deployment-cpu", "slot-deployment-cuda"])
def test_vllm_writes_nothing_that_the_agent_reads(slot: str) -> None:
    agent, vllm = containers(POD_SPECS[slot])
    written = {mount["name"] for mount in vllm["volumeMounts"] if not mount.get("readOnly")}
    assert not written & {mount["name"] for mount in agent["volumeMounts"]}


@every_pod
def test_every_mount_has_its_volume_and_every_volume_a_mount(pod: dict[str, Any]) -> None:
    mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
