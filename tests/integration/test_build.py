"""What the builders make, on a real API server: accepted, restricted, and with no right too many."""

from collections.abc import Iterator
from typing import Any

import pytest

from dev.cluster import control_plane
from tests.integration.kubectl import Kubectl
from tests.unit.manifests.examples import ENGINE, GOLDEN, pod_specs

pytestmark = pytest.mark.integration

NAMESPACE = ENGINE.metadata.namespace
AGENT = f"system:serviceaccount:{NAMESPACE}:chat-agent"
ENGINES = f"/apis/sluice.dev/v1alpha1/namespaces/{NAMESPACE}/inferenceengines"
RESTRICTED = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {
        "name": NAMESPACE,
        "labels": {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")},
    },
}


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    plane = control_plane.start(tmp_path_factory.mktemp("plane"), audit_log=False, scheduler=False)
    user = Kubectl(plane.kubeconfig)
    user.install_kinds()
    user.must("create", "-f", "-", manifest=RESTRICTED)
    user.must("config", "set-context", "--current", f"--namespace={NAMESPACE}")
    for name in ("chat", "other"):
        engine = ENGINE.model_dump(
            mode="json", by_alias=True, exclude_none=True, include={"api_version", "kind", "spec"}
        )
        user.must("create", "-f", "-", manifest={**engine, "metadata": {"name": name}})
    uid = user.read("ie", "chat")["metadata"]["uid"]
    access = [manifest | {"metadata": owned(manifest["metadata"], uid)} for manifest in GOLDEN["agent-access"]]
    user.must("apply", "--server-side", "-f", "-", manifests=access)
    user.must("create", "-f", "-", manifests=GOLDEN["adapter"])
    user.must("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    yield user
    plane.stop()


def owned(metadata: dict[str, Any], uid: str) -> dict[str, Any]:
    """The same metadata with the real owner's uid: the garbage collector would remove it otherwise."""
    (owner,) = metadata["ownerReferences"]
    return {**metadata, "ownerReferences": [{**owner, "uid": uid}]}


@pytest.mark.parametrize("name", GOLDEN)
def test_manifest_is_accepted_without_a_warning(kubectl: Kubectl, name: str) -> None:
    applied = kubectl.must(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", manifests=GOLDEN[name]
    )
    assert "Warning" not in applied
    assert applied.count("serverside-applied") == len(GOLDEN[name])


@pytest.mark.parametrize("name", pod_specs())
def test_pod_is_admitted_where_restricted_is_enforced(kubectl: Kubectl, name: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod_specs()[name]}
    assert (
        kubectl.must("create", "--dry-run=server", "-f", "-", manifest=pod) == f"pod/{name} created (server dry run)\n"
    )


def test_a_pod_that_breaks_restricted_would_be_refused(kubectl: Kubectl) -> None:
    spec = {key: value for key, value in pod_specs()["prepare-job"].items() if key != "securityContext"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "loose"}, "spec": spec}
    answer = kubectl("create", "--dry-run=server", "-f", "-", manifest=pod)
    assert 'violates PodSecurity "restricted:latest"' in answer.text


@pytest.mark.parametrize(
    "words",
    [
        ("get", "ie", "chat"),
        ("get", "--raw", f"{ENGINES}?fieldSelector=metadata.name%3Dchat"),
        ("get", "--raw", f"{ENGINES}?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dchat"),
        ("get", "ad"),
        ("get", "--raw", f"/apis/sluice.dev/v1alpha1/namespaces/{NAMESPACE}/adapters?watch=1&timeoutSeconds=1"),
    ],
    ids=" ".join,
)
def test_agent_may_read_its_engine_and_adapters(kubectl: Kubectl, words: tuple[str, ...]) -> None:
    kubectl.as_user(AGENT).must(*words)


@pytest.mark.parametrize(
    "words",
    [
        ("get", "ie"),
        ("get", "ie", "other"),
        ("get", "--raw", f"{ENGINES}?watch=1&timeoutSeconds=1"),
        ("get", "ad", "--namespace=default"),
        ("get", "ftj"),
        ("get", "secrets"),
        ("get", "pods"),
        ("patch", "ie", "chat", "--type=merge", "-p", '{"spec": {"replicas": 0}}'),
        ("patch", "ie", "chat", "--subresource=status", "--type=merge", "-p", '{"status": {"lent": 0}}'),
        ("delete", "ad", "support-tone"),
    ],
    ids=" ".join,
)
def test_agent_may_do_nothing_else(kubectl: Kubectl, words: tuple[str, ...]) -> None:
    answer = kubectl.as_user(AGENT)(*words)
    assert not answer.ok
    assert "Forbidden" in answer.text or "forbidden" in answer.text


def test_agent_watch_by_name_shows_its_engine_only(kubectl: Kubectl) -> None:
    watch = f"{ENGINES}?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dchat"
    seen = kubectl.as_user(AGENT).must("get", "--raw", watch)
    assert '"type":"ADDED"' in seen
    assert '"name":"chat"' in seen
    assert '"name":"other"' not in seen
