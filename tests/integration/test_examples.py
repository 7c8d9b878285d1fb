"""examples/ and the chart on a real API server: applied as a user would, and kept as they were written."""

from pathlib import Path

import pytest

from dev.cache import REPOSITORY
from dev.cluster.control_plane import ControlPlane
from tests.integration.kubectl import Kubectl
from tests.unit.chart.helm import DEV_VALUES, helm
from tests.unit.pages import shown

pytestmark = pytest.mark.integration

PAGES = [
    REPOSITORY / name for name in ("README.md", "docs/scheduling.md", "docs/scheduling-reference.md", "docs/tenancy.md")
]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_example_applied_again_is_unchanged(file: Path, control_plane: ControlPlane, namespace: str) -> None:
    kubectl = Kubectl(control_plane.kubeconfig)
    first = kubectl.must("apply", "--namespace", namespace, "-f", str(file))
    assert "Warning" not in first
    again = kubectl.must("apply", "--namespace", namespace, "-f", str(file))
    changed = [line for line in again.splitlines() if not line.endswith("unchanged")]
    # A Secret's stringData is not kept as it was written, so that kubectl always finds something to write.
    assert not [line for line in changed if not line.startswith("secret/")]
    kubectl.must("delete", "--namespace", namespace, "--wait=false", "-f", str(file))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_manifest_that_a_page_shows_is_accepted(page: Path, control_plane: ControlPlane, namespace: str) -> None:
    kubectl = Kubectl(control_plane.kubeconfig)
    for manifests in filter(None, shown(page)):  # a block may have settings of other programs only
        said = kubectl.must("create", "--dry-run=server", "--namespace", namespace, "-f", "-", manifests=manifests)
        assert "Warning" not in said


def test_tenancy_recipe_refuses_system_priority_classes(control_plane: ControlPlane, namespace: str) -> None:
    """Kubernetes lets everybody name its own priorities, and Sluice's admission policy does too."""
    kubectl = Kubectl(control_plane.kubeconfig)
    recipe = [body for manifests in shown(PAGES[-1]) for body in manifests or ()]
    (quota,) = (body for body in recipe if body["kind"] == "ResourceQuota" and "scopeSelector" in body["spec"])
    kubectl.must("create", "--namespace", namespace, "-f", "-", manifest=quota)
    name = quota["metadata"]["name"]
    kubectl.must("wait", "resourcequota", name, "--namespace", namespace, "--for=jsonpath={.status.hard.pods}=0")

    def said(priority: str) -> str:
        spec = {"containers": [{"name": "x", "image": "x"}], "priorityClassName": priority}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        return kubectl("create", "--dry-run=server", "--namespace", namespace, "-f", "-", manifest=pod).text

    for priority in ("system-node-critical", "system-cluster-critical"):
        assert f"exceeded quota: {name}" in said(priority)
    assert "created (server dry run)" in said("sluice-inference")


def test_chart_installs_under_restricted_and_upgrades_to_itself(control_plane: ControlPlane, namespace: str) -> None:
    """Its CRDs and priority classes are there already, as on the cluster of this test's neighbours."""
    kubectl = Kubectl(control_plane.kubeconfig)
    kubectl.must("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    words: list[str | Path] = [
        *("sluice", REPOSITORY / "charts" / "sluice", "--namespace", namespace, "--values", DEV_VALUES),
        *("--set", "crds.install=false,priorityClasses.create=false"),
        f"--kubeconfig={control_plane.kubeconfig}",
    ]
    try:
        for revision in ("1", "2"):
            installed = helm("upgrade", "--install", *words)
            assert installed.returncode == 0, installed.stderr
            assert f"REVISION: {revision}" in installed.stdout
        kubectl.must("rollout", "history", "deployment/sluice", "--namespace", namespace)
        sets = kubectl.read("replicasets", "--namespace", namespace)["items"]
        assert len(sets) == 1  # The upgrade restarted nothing.
        kubectl.must("wait", "pods", "--all", "--namespace", namespace, "--for=jsonpath={.status.phase}=Pending")
    finally:
        helm("uninstall", "sluice", "--no-hooks", "--namespace", namespace, f"--kubeconfig={control_plane.kubeconfig}")
