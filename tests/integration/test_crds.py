"""The custom resources on a real API server: what it takes, what it refuses, and with which words."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from dev.cluster import control_plane
from sluice_api.crd import RESOURCES, resource_schema
from sluice_api.schema import RULES, fields_of
from tests.integration.kubectl import Kubectl
from tests.integration.refusals import REFUSED, SMALLEST, SPELLINGS, UNCHANGEABLE, merged, spelt, written

pytestmark = pytest.mark.integration

CHANGEABLE = [
    ("FineTuneJob", "spec.suspend", True),
    ("FineTuneJob", "spec.scheduling.policy", "Preempt"),
    ("FineTuneJob", "spec.scheduling.priority", 5),
    ("FineTuneJob", "spec.scheduling.notBefore", "2027-01-04T20:00:00Z"),
    ("FineTuneJob", "spec.scheduling.scaleUpFirst", {"waitSeconds": 60}),
    ("InferenceEngine", "spec.model.uri", "pvc://models/other"),
    ("InferenceEngine", "spec.preemption.policy", "ScaleDown"),
    ("Adapter", "spec.source.uri", "pvc://adapters/support/older"),
    ("GPUPool", "spec.pricePerGpuHour", "2.5"),
]


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    plane = control_plane.start(
        tmp_path_factory.mktemp("plane"), audit_log=False, controller_manager=False, scheduler=False
    )
    user = Kubectl(plane.kubeconfig)
    user.must("create", "namespace", "team-a")
    user.must("config", "set-context", "--current", "--namespace=team-a")
    user.install_kinds()
    user.must("create", "-f", "-", manifests=list(SMALLEST.values()))
    yield user
    plane.stop()


def says(text: str, expected: str) -> bool:
    """Whether a line has the expected parts in their order; `*` is anything."""
    return any(in_order(line, expected.split(" * ")) for line in text.splitlines())


def in_order(line: str, parts: list[str]) -> bool:
    at = 0
    for part in parts:
        at = line.find(part.removesuffix(" *"), at)
        if at < 0:
            return False
    return True


@pytest.mark.parametrize(("kind", "field", "value", "expected"), REFUSED)
def test_a_wrong_field_is_refused_with_its_remedy(
    kubectl: Kubectl, kind: str, field: str, value: Any, expected: str
) -> None:
    manifest = merged(SMALLEST[kind], written(field, value))
    if not field.startswith("metadata"):
        manifest["metadata"]["name"] = "another"
    answer = kubectl("create", "--dry-run=server", "-f", "-", manifest=manifest)
    assert not answer.ok
    assert says(answer.text, expected), answer.text


@pytest.mark.parametrize(("text", "is_taken"), SPELLINGS)
def test_a_spelling_is_taken_or_refused(kubectl: Kubectl, text: str, *, is_taken: bool) -> None:
    answer = kubectl("create", "--dry-run=server", "-f", "-", text=spelt(text))
    assert answer.ok == is_taken, answer.text


@pytest.mark.parametrize(("kind", "field", "value", "expected"), UNCHANGEABLE)
def test_immutable_field_is_refused_with_its_remedy(
    kubectl: Kubectl, kind: str, field: str, value: Any, expected: str
) -> None:
    manifest = merged(SMALLEST[kind], written(field, value))
    answer = kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", manifest=manifest)
    assert not answer.ok
    assert says(answer.text, f"{expected} cannot be changed"), answer.text
    assert "create" in answer.text


@pytest.mark.parametrize(("kind", "field", "value"), CHANGEABLE)
def test_mutable_field_may_be_changed(kubectl: Kubectl, kind: str, field: str, value: Any) -> None:
    manifest = merged(SMALLEST[kind], written(field, value))
    kubectl.must("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", manifest=manifest)


def test_publish_cannot_be_removed_and_only_its_replace_changes(
    kubectl: Kubectl,
) -> None:
    publish = {"spec": {"publish": {"engine": "chat", "name": "tone"}}, "metadata": {"name": "publishes"}}
    kubectl.must("create", "-f", "-", manifest=merged(SMALLEST["FineTuneJob"], publish))
    answer = kubectl("patch", "ftj", "publishes", "--type=merge", "-p", '{"spec": {"publish": null}}')
    assert says(answer.text, "spec.publish: * cannot be changed"), answer.text
    for field, value in (("engine", "other"), ("name", "other")):
        patch = json.dumps({"spec": {"publish": {field: value}}})
        answer = kubectl("patch", "ftj", "publishes", "--type=merge", "-p", patch)
        assert says(answer.text, f"spec.publish.{field}: * cannot be changed"), answer.text
    kubectl.must("patch", "ftj", "publishes", "--type=merge", "-p", '{"spec": {"publish": {"replace": true}}}')


def test_scheduling_is_fixed_while_the_job_holds_gpus(kubectl: Kubectl) -> None:
    kubectl.must("create", "-f", "-", manifest=merged(SMALLEST["FineTuneJob"], {"metadata": {"name": "holds"}}))
    change = ("patch", "ftj", "holds", "--type=merge", "-p")
    kubectl.must(*change, '{"status": {"allocation": {"node": "gpu-1", "gpus": 1}}}', "--subresource=status")
    answer = kubectl(*change, '{"spec": {"scheduling": {"priority": 7}}}')
    assert says(answer.text, "spec.scheduling: * cannot be changed while the job holds GPUs: suspend it first")
    kubectl.must(*change, '{"spec": {"suspend": true}}')
    kubectl.must(*change, '{"status": {"allocation": null}}', "--subresource=status")
    kubectl.must(*change, '{"spec": {"scheduling": {"priority": 7}}}')


def bounds() -> Iterator[tuple[str, str, Any]]:
    """Of each field of each spec, a value of the wrong type and one beyond each bound."""
    for kind in RESOURCES:
        for path, field in fields_of(resource_schema(kind)["properties"]["spec"], "spec"):
            if path.endswith(("[]", "{}")):
                continue
            yield kind.KIND.kind, path, 1 if field["type"] != "integer" else "one"
            if "enum" in field:
                yield kind.KIND.kind, path, "Nonsense" if field["type"] == "string" else 7
            if "minimum" in field:
                yield kind.KIND.kind, path, field["minimum"] - 1
            if "maximum" in field:
                yield kind.KIND.kind, path, field["maximum"] + 1
            if field["type"] == "string" and any("self.matches" in rule["rule"] for rule in field.get(RULES, ())):
                yield kind.KIND.kind, path, "!"
            if "maxLength" in field:
                yield kind.KIND.kind, path, "a" * (field["maxLength"] + 1)


def shown(path: str) -> str:
    """A path as the API server writes it."""
    return path.replace("[]", "[0]")


def test_every_bound_of_every_field_holds(kubectl: Kubectl) -> None:
    broken = {f"broken-{number}": bound for number, bound in enumerate(bounds())}
    publishing = written("spec.publish", {"engine": "chat", "name": "tone"})
    whole = SMALLEST | {"FineTuneJob": merged(SMALLEST["FineTuneJob"], publishing)}
    manifests = [
        merged(whole[kind], {"metadata": {"name": name}} | written(path, value))
        for name, (kind, path, value) in broken.items()
    ]
    answer = kubectl("create", "--dry-run=server", "-f", "-", manifests=manifests)
    told = {part.partition('"')[0]: part for part in answer.text.split('"broken-')[1:]}
    accepted = [
        bound for name, bound in broken.items() if shown(bound[1]) not in told.get(name.removeprefix("broken-"), "")
    ]
    assert len(broken) > 100
    assert accepted == []


def test_defaults_are_visible_after_admission(kubectl: Kubectl) -> None:
    job = kubectl.read("ftj", "support-tone")["spec"]
    assert job["training"]["learningRate"] == "2e-4"
    assert job["lora"] == {
        "rank": 16, "alpha": 32, "dropout": "0.0", "rankStabilized": False, "targetModules": []
    }  # fmt: skip
    assert (job["scheduling"]["policy"], job["scheduling"]["priority"]) == ("Queue", 0)
    assert job["scheduling"]["interruption"] == {"policy": "Never", "minRunSeconds": 300, "graceSeconds": 0}
    assert job["suspend"] is False
    engine = kubectl.read("ie", "chat")["spec"]
    assert engine["preemption"]["policy"] == "Never"
    assert "lora" not in engine
    assert kubectl.read("gpool", "h100")["spec"]["resourceName"] == "nvidia.com/gpu"


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.KIND.kind)
def test_operator_parses_each_stored_resource(kubectl: Kubectl, resource: Any) -> None:
    name = SMALLEST[resource.KIND.kind]["metadata"]["name"]
    parsed = resource.parse(kubectl.read(resource.KIND.plural, name))
    assert parsed.metadata.name == name


def test_status_gets_no_defaults(kubectl: Kubectl) -> None:
    """Defaults in a status would be owned by nobody and would look like facts."""
    kubectl.must("create", "-f", "-", manifest=merged(SMALLEST["FineTuneJob"], {"metadata": {"name": "told"}}))
    patch = '{"status": {"progress": {"step": 3}}}'
    kubectl.must("patch", "ftj", "told", "--subresource=status", "--type=merge", "-p", patch)
    assert kubectl.read("ftj", "told")["status"] == {"progress": {"step": 3}}


def test_scale_subresource_is_read_and_written(kubectl: Kubectl) -> None:
    kubectl.must("create", "-f", "-", manifest=merged(SMALLEST["InferenceEngine"], {"metadata": {"name": "scaled"}}))
    status = '{"status": {"replicas": 2, "selector": "sluice.dev/engine=scaled"}}'
    kubectl.must("patch", "ie", "scaled", "--subresource=status", "--type=merge", "-p", status)
    kubectl.must("scale", "ie/scaled", "--replicas=5")
    scale = kubectl.read("ie", "scaled", "--subresource=scale")
    assert scale["spec"] == {"replicas": 5}
    assert scale["status"] == {"replicas": 2, "selector": "sluice.dev/engine=scaled"}
    patch = '{"spec": {"replicas": 3}}'
    kubectl.must("patch", "ie", "scaled", "--subresource=scale", "--type=merge", "-p", patch)
    assert kubectl.read("ie", "scaled")["spec"]["replicas"] == 3


def test_min_replicas_above_replicas_is_accepted(kubectl: Kubectl) -> None:
    """HPA and scale-to-zero must be able to write."""
    floor = {"metadata": {"name": "floor"}, "spec": {"preemption": {"policy": "ScaleDown", "minReplicas": 3}}}
    kubectl.must("create", "-f", "-", manifest=merged(SMALLEST["InferenceEngine"], floor))
    kubectl.must("scale", "ie/floor", "--replicas=0")
    assert kubectl.read("ie", "floor")["spec"]["replicas"] == 0


@pytest.mark.parametrize(
    ("resource", "header"),
    [
        ("ftj", ["NAME", "MODEL", "STATUS", "PROGRESS", "EPOCH", "LOSS", "ETA", "GPUS", "AGE"]),
        ("ie", ["NAME", "MODEL", "READY", "LENT", "AGE"]),
        ("ad", ["NAME", "ENGINE", "VERSION", "LOADED", "READY", "AGE"]),
        ("gpool", ["NAME", "NODES", "GPUS", "INFERENCE", "TRAINING", "LENT", "FREE", "WAITING", "AGE"]),
    ],
)
def test_printer_columns_of_each_resource(kubectl: Kubectl, resource: str, header: list[str]) -> None:
    assert kubectl.must("get", resource).splitlines()[0].split() == header


def test_category_sluice_lists_all_resources(kubectl: Kubectl) -> None:
    shown = kubectl.must("get", "sluice")
    for resource in RESOURCES:
        assert f"{resource.KIND.kind.lower()}.sluice.dev/" in shown


def test_kubectl_explain_reads_as_documentation(kubectl: Kubectl) -> None:
    text = " ".join(kubectl.must("explain", "finetunejob.spec.scheduling").split())
    assert "When the job gets GPUs, and from whom." in text
    assert "enum: Queue, Preempt" in text
    lends = "it may also borrow the GPUs of inference engines that lend to this namespace, down to their floor"
    assert f"Preempt: {lends}" in text
