"""The chart as a user's `helm install` would see it."""

import json
import os
import re
from collections import Counter
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dev.cache import REPOSITORY
from sluice_operator.settings import Settings
from tests.unit.chart.helm import CHART, DEV_VALUES, Manifest, helm, manifests, one, render
from tests.unit.chart.pod_security import violations

GOLDEN = REPOSITORY / "tests" / "golden" / "chart"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
KEPT = "helm.sh/resource-policy"
READS = {"get", "list", "watch"}
NO_CRDS = ("--set", "crds.install=false")  # They are compared with crds/ below.
WITHOUT_GENERATED = (*NO_CRDS, "--set", "metrics.dashboards.create=false")
EVERYTHING = (
    *("--set", "metrics.serviceMonitor.create=true,metrics.podMonitor.create=true,metrics.prometheusRule.create=true"),
    *("--set", "metrics.prometheusRule.runbooks=https://runbooks.example/sluice"),
    *("--set", "admissionPolicy.exempt.users={restorer},admissionPolicy.exempt.groups={system:masters}"),
    *("--set", "images.pullSecrets={registry},podLabels.team=ml,podAnnotations.note=x"),
    *("--set", f"images.operator.digest=sha256:{'0' * 64}"),
)
VARIANTS: dict[str, tuple[str | Path, ...]] = {
    "default": (),
    "dev": ("--values", DEV_VALUES),
    "watch-namespaces": ("--set", "watchNamespaces={team-a,team-b}"),
    "everything": EVERYTHING,
    "cert-manager": ("--set", "tls.issuer=CertManager,tls.certManager.issuerRef.name=company"),
    "in-plain-text": ("--set", "tls.issuer=None,metrics.access=Open"),
}

each_variant = pytest.mark.parametrize("values", VARIANTS.values(), ids=list(VARIANTS))


@pytest.mark.parametrize("variant", ["default", "dev", "watch-namespaces"])
def test_rendered_chart_is_as_reviewed(variant: str) -> None:
    rendered = render(*WITHOUT_GENERATED, "--skip-tests", *VARIANTS[variant])
    golden = GOLDEN / f"{variant}.yaml"
    if os.environ.get("SLUICE_GOLDEN") == "rewrite":
        golden.write_text(rendered)
    assert rendered == golden.read_text(), "read the difference, then `make golden` if it is meant"


@each_variant
def test_chart_passes_helm_lint(values: tuple[str | Path, ...]) -> None:
    linted = helm("lint", "--strict", CHART, *values)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@each_variant
def test_every_pod_is_restricted(values: tuple[str | Path, ...]) -> None:
    found = {m["metadata"]["name"]: violations(pod) for m in manifests(*values) if (pod := pod_spec(m))}
    assert found == {"sluice": [], "sluice-test": [], "sluice-give-back": []}


@each_variant
def test_rights_have_no_wildcard(values: tuple[str | Path, ...]) -> None:
    rules = [rule for m in manifests(*values) if m["kind"] in ("Role", "ClusterRole") for rule in m["rules"]]
    assert rules
    for rule in rules:
        words = {*rule.get("apiGroups", ()), *rule.get("resources", ()), *rule["verbs"]}
        assert not {word for word in words if "*" in word}
        assert not {"pods/exec", "escalate", "bind", "impersonate"} & words


@each_variant
def test_secret_rights_are_for_the_operators_certificate_only(values: tuple[str | Path, ...]) -> None:
    """A name can't limit `create`; to read or change one takes its name."""
    rules = [(m, rule) for m in manifests(*values) if m["kind"] in ("Role", "ClusterRole") for rule in m["rules"]]
    for manifest, rule in rules:
        if "secrets" in rule.get("resources", ()):
            assert manifest["kind"] == "Role"
            assert manifest["metadata"]["namespace"] == "sluice-system"
            assert rule["verbs"] == ["create"] or rule["resourceNames"] == ["sluice-progress-tls"]


@each_variant
def test_configmap_rights_are_for_the_trusted_authorities_only(values: tuple[str | Path, ...]) -> None:
    """The operator may read and change no other of its users', in no namespace."""
    rules = [rule for m in manifests(*values) if m["kind"] in ("Role", "ClusterRole") for rule in m["rules"]]
    found = [rule for rule in rules if "configmaps" in rule.get("resources", ())]
    assert {rule["resourceNames"][0] for rule in found if rule["verbs"] != ["create"]} <= {"sluice-progress-ca"}
    assert found


def test_watch_namespaces_limits_what_may_be_written() -> None:
    writes = {"create", "update", "patch", "delete", "deletecollection"}
    rendered = manifests(*VARIANTS["watch-namespaces"])
    bound = {m["roleRef"]["name"] for m in rendered if m["kind"] == "ClusterRoleBinding"}
    in_cluster = {
        resource
        for m in rendered
        if m["kind"] == "ClusterRole" and m["metadata"]["name"] in bound
        for rule in m["rules"]
        for resource in rule.get("resources", ())
        if writes & set(rule["verbs"])
    }
    assert in_cluster == {"gpupools/status", "tokenreviews", "subjectaccessreviews"}  # All are cluster-scoped.


def test_user_roles_write_no_status_and_only_pool_admin_writes_pools() -> None:
    aggregated = {
        "sluice-view": "rbac.authorization.k8s.io/aggregate-to-view",
        "sluice-edit": "rbac.authorization.k8s.io/aggregate-to-edit",
        "sluice-pool-view": "",
        "sluice-pool-admin": "",
    }
    for name, label in aggregated.items():
        role = one("ClusterRole", name)
        assert {key for key in role["metadata"]["labels"] if "aggregate-to" in key} == {label} - {""}
        written = {r for rule in role["rules"] if set(rule["verbs"]) - READS for r in rule["resources"]}
        assert not {resource for resource in written if resource.endswith("/status")}
        assert ("gpupools" in written) is (name == "sluice-pool-admin")
    crds = [m for m in manifests() if m["kind"] == "CustomResourceDefinition"]
    served = {crd["spec"]["names"]["plural"] for crd in crds}
    scaled = {crd["spec"]["names"]["plural"] for crd in crds if "scale" in crd["spec"]["versions"][0]["subresources"]}
    readable = {r for rule in one("ClusterRole", "sluice-view")["rules"] for r in rule["resources"]}
    assert readable == served | {f"{plural}/status" for plural in served} | {f"{plural}/scale" for plural in scaled}
    writable = {r for rule in one("ClusterRole", "sluice-edit")["rules"] for r in rule["resources"]}
    assert writable == served - {"gpupools"} | {f"{plural}/scale" for plural in scaled}


@each_variant
def test_admission_policy_exempts_every_account_of_the_operator(values: tuple[str | Path, ...]) -> None:
    rendered = manifests(*values)
    bound = {
        f"system:serviceaccount:{subject['namespace']}:{subject['name']}"
        for m in rendered
        if m["kind"] == "ClusterRoleBinding"
        for subject in m["subjects"]
    }
    (policy,) = (m for m in rendered if m["kind"] == "ValidatingAdmissionPolicy")
    (operators,) = (c["expression"] for c in policy["spec"]["matchConditions"] if c["name"] == "not-sluice")
    assert set(re.findall(r'"([^"]*)"', operators)) == bound
    (binding,) = (m for m in rendered if m["kind"] == "ValidatingAdmissionPolicyBinding")
    assert binding["spec"] == {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}


def test_admission_policy_can_be_left_out() -> None:
    kinds = {m["kind"] for m in manifests("--set", "admissionPolicy.create=false")}
    assert not {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"} & kinds


def test_operator_holds_the_rights_that_it_grants_to_agents() -> None:
    read = one("ClusterRole", "sluice-read")["rules"]
    (ours,) = (set(rule["verbs"]) for rule in read if "inferenceengines" in rule["resources"])
    assert ours >= {"get", "list", "watch"}


def test_each_setting_is_given_and_has_the_same_default() -> None:
    given = {entry["name"]: entry.get("value") for entry in operator_container()["env"]}
    assert set(given) == {f"SLUICE_{field.name.upper()}" for field in fields(Settings)}
    differing = {
        field.name: (field.default, given[f"SLUICE_{field.name.upper()}"])
        for field in fields(Settings)
        if field.default is not MISSING and as_text(field.default) != given[f"SLUICE_{field.name.upper()}"]
    }
    assert not differing


def test_progress_service_selects_the_leader_only() -> None:
    selector = one("Service", "sluice-progress")["spec"]["selector"]
    labels = one("Deployment", "sluice")["spec"]["template"]["metadata"]["labels"]
    assert selector.pop("sluice.dev/leader") == "true"
    assert selector.items() <= labels.items()
    assert "sluice.dev/leader" not in labels  # The leader puts it on, and takes it from another pod.


def test_deployment_selects_no_other_pod_of_the_release() -> None:
    selector = one("Deployment", "sluice")["spec"]["selector"]["matchLabels"]
    others = [one("Pod", "sluice-test"), one("Job", "sluice-give-back")["spec"]["template"]]
    assert [selector.items() <= other["metadata"]["labels"].items() for other in others] == [False, False]


def test_crds_and_priority_classes_survive_an_uninstall() -> None:
    """Their definitions, and the classes without which no pod of theirs could come back."""
    kept = [m["kind"] for m in manifests() if m["metadata"].get("annotations", {}).get(KEPT) == "keep"]
    assert Counter(kept) == {"CustomResourceDefinition": 4, "PriorityClass": 3}
    assert not any(m["kind"] == "CustomResourceDefinition" for m in manifests(*NO_CRDS))


def test_crds_of_the_chart_are_the_generated_ones() -> None:
    source = {file.name: yaml.safe_load(file.read_text()) for file in (REPOSITORY / "crds").glob("*.yaml")}
    rendered = [m["spec"] for m in manifests() if m["kind"] == "CustomResourceDefinition"]
    assert len(source) == 4
    assert all(crd["spec"] in rendered for crd in source.values())


def test_give_back_hook_ends_by_itself_and_leaves_nothing() -> None:
    job = one("Job", "sluice-give-back")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    assert 0 < job["spec"]["activeDeadlineSeconds"] < 300  # Helm's own patience, by default.
    hooks = [m for m in manifests() if "sluice-give-back" in m["metadata"]["name"]]
    policies = {m["metadata"]["annotations"]["helm.sh/hook-delete-policy"] for m in hooks}
    assert policies == {"before-hook-creation,hook-succeeded"}


def test_sidecar_injection_is_off_in_hooks() -> None:
    """Seen elsewhere: helm/charts#23875."""
    for metadata in (
        one("Job", "sluice-give-back")["spec"]["template"]["metadata"],
        one("Pod", "sluice-test")["metadata"],
    ):
        assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
        assert metadata["annotations"]["linkerd.io/inject"] == "disabled"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("devices=cuda", "devices"),
        ("device=tpu", "device"),
        ("images.operator.digest=sha256:abc", "digest"),
        ("images.workloadPullSecrets={a,a}", "workloadPullSecrets"),  # no apply takes it (ai-dynamo/dynamo#3923)
        ("replicas=0", "replicas"),
        ("watchNamespaces={Team_A}", "watchNamespaces"),
        ("admissionPolicy.exempt.groups={'}", "groups"),
        ("metrics.prometheusRule.runbooks=a#b", "runbooks"),
        ("timing.leaseSeconds=soon", "leaseSeconds"),
        ("networkPolicy.clientsFrom[0].namespace=a", "clientsFrom"),
        ("priorityClasses.inference.value=9", "above that of placeholder"),
    ],
)
def test_a_wrong_value_is_refused_by_name(value: str, said: str) -> None:
    refused = helm("template", "sluice", CHART, "--set", value)
    assert refused.returncode != 0
    assert said in refused.stderr


def test_every_value_is_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.validate(values, schema)
    assert set(values) == set(schema["properties"]) - {"global"}


def test_service_monitor_takes_its_token_from_token_secret() -> None:
    """Where no monitor may name a file of Prometheus', one that does is left out as a whole (operator-sdk#7003)."""
    monitor = ("--set", "metrics.serviceMonitor.create=true")
    (by_file,) = one("ServiceMonitor", "sluice", *monitor)["spec"]["endpoints"]
    assert (by_file["bearerTokenFile"], "authorization" in by_file) == (f"{ACCOUNT}/token", False)
    secret = ("--set", "metrics.serviceMonitor.tokenSecret.name=scraper")
    (by_secret,) = one("ServiceMonitor", "sluice", *monitor, *secret)["spec"]["endpoints"]
    assert by_secret["authorization"] == {"credentials": {"name": "scraper", "key": "token"}}
    assert not any(key.endswith("File") for key in (*by_secret, *by_secret["tlsConfig"]))


def test_dashboards_are_found_by_grafana() -> None:
    config = one("ConfigMap", "sluice-dashboards")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert {name: bool(json.loads(text)) for name, text in config["data"].items()} == {"sluice.json": True}


def pod_spec(manifest: Manifest) -> dict[str, Any] | None:
    """The pod that a manifest makes, if it makes one."""
    if manifest["kind"] == "Pod":
        return dict(manifest["spec"])
    template = manifest.get("spec", {}).get("template")
    return dict(template["spec"]) if template else None


def operator_container() -> dict[str, Any]:
    """The one container of the operator's pods."""
    (container,) = one("Deployment", "sluice")["spec"]["template"]["spec"]["containers"]
    return dict(container)


def as_text(default: object) -> str:
    """A setting's default as the environment has it."""
    return ",".join(default) if isinstance(default, tuple) else str(default)
