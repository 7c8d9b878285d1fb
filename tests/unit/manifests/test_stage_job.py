"""Stage Jobs: what a golden file does not say."""

from typing import Any

import pytest

from sluice_api import meta, pods
from sluice_api.claim import Claim, NodeAllocation, Share
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPoolSpec, SharingMode
from sluice_api.stages import Stage, StageSpec
from sluice_api.tolerations import Toleration
from sluice_operator.manifests.devices import training_gpus
from sluice_operator.manifests.engine import slot_deployment
from sluice_operator.manifests.network_policy import job_policy
from sluice_operator.manifests.placeholder import placeholder
from sluice_operator.manifests.scale_up import scale_up_pod
from tests.unit.manifests.examples import (
    CLAIM,
    CUDA,
    DRA_BORROWER,
    DRA_CLAIM,
    ENGINE,
    JOB,
    NO_VOLUMES,
    environment,
    stage_job,
)


def claim_for(stage: Stage) -> Claim | None:
    return CLAIM if stage is Stage.TRAIN else None


def with_spec(**changes: dict[str, Any]) -> FineTuneJob:
    body = JOB.model_dump(by_alias=True, exclude_none=True)
    return FineTuneJob.parse({**body, "spec": {**body["spec"], **changes}})


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("stage", Stage)
def test_stage_spec_is_in_the_pods_environment(stage: Stage) -> None:
    (trainer,) = pod_of(stage_job(JOB, stage, 2, CUDA, claim_for(stage)))["containers"]
    told = StageSpec.model_validate(environment(trainer, pods.STAGE_ENV))
    assert (told.stage, told.attempt, told.uid, told.spec) == (stage, 2, JOB.metadata.uid, JOB.spec)


def test_claim_is_read_back_from_the_job() -> None:
    annotations = stage_job(JOB, Stage.TRAIN, 1, CUDA, CLAIM)["metadata"]["annotations"]
    assert Claim.model_validate_json(annotations[meta.CLAIM_ANNOTATION]) == CLAIM


@pytest.mark.parametrize(("stage", "claim"), [(Stage.TRAIN, None), (Stage.PREPARE, CLAIM), (Stage.EXPORT, CLAIM)])
def test_claim_belongs_to_the_train_stage_only(stage: Stage, claim: Claim | None) -> None:
    with pytest.raises(ValueError, match=f"{stage} .* claim"):
        stage_job(JOB, stage, 1, CUDA, claim)


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.EXPORT])
def test_cpu_stages_take_no_gpu_and_wait_at_no_gate(stage: Stage) -> None:
    pod = pod_of(stage_job(JOB, stage, 1, CUDA))
    (trainer,) = pod["containers"]
    assert set(trainer["resources"]["limits"]) == {"memory", "ephemeral-storage"}
    assert not {"schedulingGates", "priorityClassName", "tolerations"} & pod.keys()


@pytest.mark.parametrize(("stage", "threads"), [(Stage.PREPARE, 1), (Stage.TRAIN, 2), (Stage.EXPORT, 1)])
def test_threads_are_the_requested_cores_of_the_stages_own_pod(stage: Stage, threads: int) -> None:
    """spec.resources is the training pod's: the other stages ask for a part of a core, whatever it says."""
    job = with_spec(resources={"gpus": 2, "cpu": "4"})
    (trainer,) = pod_of(stage_job(job, stage, 1, CUDA, claim_for(stage)))["containers"]
    assert environment(trainer, pods.THREADS_ENV) == threads


@pytest.mark.parametrize("stage", Stage)
def test_do_not_disrupt_is_on_training_pods_only(stage: Stage) -> None:
    template = stage_job(JOB, stage, 1, CUDA, claim_for(stage))["spec"]["template"]
    asked = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    assert (asked.items() <= template["metadata"]["annotations"].items()) is (stage is Stage.TRAIN)


@pytest.mark.parametrize("stage", Stage)
def test_sidecar_injection_is_off_in_stage_pods(stage: Stage) -> None:
    """It outlives the trainer, so the Job never ends, and the pod's NetworkPolicy keeps it from its control plane.

    Seen elsewhere: istio#11045, weblogic-kubernetes-operator#1039.
    """
    metadata = stage_job(JOB, stage, 1, CUDA, claim_for(stage))["spec"]["template"]["metadata"]
    assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
    assert metadata["annotations"]["linkerd.io/inject"] == "disabled"


def test_tolerations_of_a_pool_are_on_every_pod_that_uses_its_nodes() -> None:
    spot = Toleration(key="example.com/spot", operator="Equal", value="yes", effect="NoSchedule")
    sku = Toleration(key="example.com/sku")
    pool = GPUPoolSpec(tolerations=(spot, sku))
    slot = slot_deployment(ENGINE, 0, 1, "digest", pool=pool, settings=CUDA)
    made = [
        pod_of(stage_job(JOB, Stage.TRAIN, 1, CUDA, CLAIM, pool.tolerations)),
        pod_of(slot),
        placeholder(ENGINE, 0, pool=pool, settings=CUDA)["spec"],
        scale_up_pod(JOB, 0, "default", pool, (), CUDA)["spec"],
    ]
    for spec in made:
        assert spec["tolerations"] == [
            {"key": "nvidia.com/gpu", "operator": "Exists"},
            {"key": "example.com/spot", "operator": "Equal", "value": "yes", "effect": "NoSchedule"},
            {"key": "example.com/sku", "operator": "Exists"},
        ]


def test_training_pod_has_a_scheduling_gate_and_no_node() -> None:
    pod = pod_of(stage_job(JOB, Stage.TRAIN, 1, CUDA, CLAIM))
    assert pod["schedulingGates"] == [{"name": meta.SCHEDULING_GATE}]
    assert not {"nodeSelector", "affinity", "nodeName"} & pod.keys()


@pytest.mark.parametrize(
    ("rule", "uris", "expected"),
    [
        (
            "only the output can be written",
            ("pvc://models/m", "pvc://data/d", "pvc://out/o"),
            {"/volumes/models": True, "/volumes/data": True, "/volumes/out": False},
        ),
        (
            "a claim in two roles is mounted once, and can be written if one of them is the output",
            ("pvc://shared/m", "pvc://shared/d", "pvc://shared/o"),
            {"/volumes/shared": False},
        ),
        (
            "what is not in a claim needs no volume",
            ("hf://org/model@main", "https://example.com/d.jsonl", "pvc://out/o"),
            {"/volumes/out": False},
        ),
    ],
)
def test_volume_claims_are_mounted(rule: str, uris: tuple[str, str, str], expected: dict[str, bool]) -> None:
    model, dataset, output = ({"uri": uri} for uri in uris)
    pod = pod_of(stage_job(with_spec(model=model, dataset=dataset, output=output), Stage.PREPARE, 1, CUDA))
    (trainer,) = pod["containers"]
    found = {
        mount["mountPath"]: mount["readOnly"]
        for mount in trainer["volumeMounts"]
        if mount["mountPath"].startswith("/volumes/")
    }
    assert found == expected, rule


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (Stage.PREPARE, {"hub", "read-rows", "write-results"}),
        (Stage.TRAIN, {"hub", "write-results"}),
        (Stage.EXPORT, {"hub", "write-results"}),
    ],
)
def test_credentials_are_files_in_the_stages_that_need_them(stage: Stage, expected: set[str]) -> None:
    pod = pod_of(stage_job(NO_VOLUMES, stage, 1, CUDA, claim_for(stage)))
    (trainer,) = pod["containers"]
    mounts = {mount["mountPath"]: mount for mount in trainer["volumeMounts"]}
    secrets = {volume["secret"]["secretName"]: volume for volume in pod["volumes"] if "secret" in volume}
    assert set(secrets) == expected
    for name, volume in secrets.items():
        assert mounts[f"/credentials/{name}"] == {
            "name": volume["name"], "mountPath": f"/credentials/{name}", "readOnly": True
        }  # fmt: skip
    assert not any("valueFrom" in variable for variable in trainer["env"]), "an environment is printed"
    assert ("/configmaps/house-rules" in mounts) is (stage is Stage.PREPARE)


def test_config_map_opens_no_way_out() -> None:
    rows = {"uri": "configmap://rows/rows.jsonl"}
    assert job_policy(with_spec(dataset=rows), CUDA) == job_policy(JOB, CUDA)
    assert job_policy(NO_VOLUMES, CUDA) != job_policy(JOB, CUDA)


@pytest.mark.parametrize("host", ["host:99999", "[1:2]"])
def test_dataset_uri_without_a_valid_host_still_gets_its_prepare(host: str) -> None:
    """The CRD takes it. The operator raised at each look, and the job never said a word."""
    job = with_spec(dataset={"uri": f"https://{host}/rows.jsonl"})
    assert stage_job(job, Stage.PREPARE, 1, CUDA)
    public = job_policy(job, CUDA)["spec"]["egress"][-1]
    assert public["ports"] == [{"port": 443, "protocol": "TCP"}]


@pytest.mark.parametrize(
    ("memory", "stage", "expected"),
    [
        ("200Gi", Stage.PREPARE, "4Gi"),
        ("2Gi", Stage.PREPARE, "2Gi"),
        ("200Gi", Stage.EXPORT, "200Gi"),
        ("200Gi", Stage.TRAIN, "200Gi"),
    ],
)
def test_memory_of_a_stage(memory: str, stage: Stage, expected: str) -> None:
    job = with_spec(resources={"memory": memory})
    (trainer,) = pod_of(stage_job(job, stage, 1, CUDA, claim_for(stage)))["containers"]
    assert trainer["resources"]["requests"]["memory"] == expected


def test_name_of_a_long_job_is_cut_and_still_says_stage_and_attempt() -> None:
    job = JOB.model_copy(update={"metadata": JOB.metadata.model_copy(update={"name": "a" * 63})})
    name = stage_job(job, Stage.PREPARE, 12, CUDA)["metadata"]["name"]
    assert len(name) == 60, "with the index of a pod it is a host name"
    assert name.endswith("-0a1b2c3d-prepare-12")


def test_time_slicing_and_mps_pods_are_told_their_memory_share() -> None:
    for mode in (SharingMode.TIME_SLICING, SharingMode.MPS):
        claim = CLAIM.model_copy(update={"gpus": 1, "share": Share(mode=mode, percent=30)})
        (trainer,) = pod_of(stage_job(JOB, Stage.TRAIN, 1, CUDA, claim))["containers"]
        assert {"name": pods.SHARE_ENV, "value": "30"} in trainer["env"]
        assert trainer["resources"]["limits"][claim.resource] == "1"
        assert pods.HAMI_MEMORY not in trainer["resources"]["limits"]


def test_attempts_of_a_job_share_one_resource_claim_template() -> None:
    """Nobody deletes it before the job, so one for each attempt would pile up: a job may begin thousands."""
    again = DRA_CLAIM.model_copy(update={"places": (NodeAllocation(node="gpu-2"),), "term": 4})
    assert training_gpus(JOB, DRA_CLAIM) == training_gpus(JOB, again)
    names = set()
    for claim in (DRA_CLAIM, again, DRA_BORROWER, DRA_CLAIM.model_copy(update={"resource": "gpu.example.com"})):
        template = training_gpus(JOB, claim)
        assert template
        claims = pod_of(stage_job(JOB, Stage.TRAIN, 2, CUDA, claim))["resourceClaims"]
        (own,) = (one for one in claims if one["name"] == "gpus")
        assert own["resourceClaimTemplateName"] == template["metadata"]["name"]
        names.add(template["metadata"]["name"])
    assert names == {
        "support-tone-0a1b2c3d-gpu.nvidia.com-2",
        "support-tone-0a1b2c3d-gpu.nvidia.com-1",
        "support-tone-0a1b2c3d-gpu.example.com-2",
    }
