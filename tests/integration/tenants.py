"""Teams that share a cluster: what the chart gives the operator and people, and a user who may edit a namespace."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from dev.cluster.control_plane import ControlPlane
from tests.integration.kubectl import Kubectl
from tests.integration.progress_scene import Kube, make_namespace, until
from tests.unit.chart.helm import render

RELEASE = "sluice-system"
"""The namespace of the chart's release."""
ACCOUNT = f"system:serviceaccount:{RELEASE}:sluice"
"""Who the operator is."""
ADMINISTRATORS = ("--set", "admissionPolicy.exempt.groups={system:masters}")
"""Tests write as an administrator what the operator would have written earlier."""
RBAC = "rbac.authorization.k8s.io"
PATIENCE_SECONDS = 20

Body = dict[str, Any]


@contextmanager
def installed(plane: ControlPlane, *, policy: bool) -> Iterator[None]:
    """The chart's accounts and roles, and its admission policy if so; gone after the block."""
    admin = Kubectl(plane.kubeconfig)
    templates = ["rbac", "roles", "tests/install", *(["admission"] if policy else [])]
    shown = render(*(word for name in templates for word in ("-s", f"templates/{name}.yaml")), *ADMINISTRATORS)
    of_the_chart = [manifest for manifest in yaml.safe_load_all(shown) if manifest and manifest["kind"] != "Pod"]
    manifests = [*of_the_chart, _may_edit("prober", "default")]
    admin("create", "namespace", RELEASE)  # it may be there: it stays for as long as the control plane does
    admin.must("apply", "--server-side", "-f", "-", manifests=manifests)
    try:
        wait_for(lambda: "finetunejobs" in admin.must("get", "clusterrole", "edit", "-o", "yaml"), "edit has our kinds")
        if policy:
            wait_for(lambda: _is_refused(admin.as_user("prober")), "the policy works")
        yield
    finally:
        admin.must("delete", "-f", "-", manifests=manifests)
        if policy:
            wait_for(lambda: not _is_refused(admin.as_user("prober")), "the policy is gone")


def wait_for(there: Any, what: str) -> None:
    """Wait for what nothing announces: admission and aggregation follow their objects a moment later."""
    late = time.monotonic() + PATIENCE_SECONDS
    while not there():
        assert time.monotonic() < late, f"never: {what}"
        time.sleep(0.05)


def _is_refused(user: Kubectl) -> bool:
    metadata, spec = (
        {"name": "probe", "labels": {"sluice.dev/probe": ""}},
        {"containers": [{"name": "x", "image": "x"}]},
    )
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    return "sluice.dev/probe" in user("create", "--dry-run=server", "-n", "default", "-f", "-", manifest=body).text


def _may_edit(user: str, namespace: str) -> Body:
    """The built-in role `edit`, for one user in one namespace."""
    return _binding("edits", user, namespace, "ClusterRole", "edit")


def _binding(name: str, user: str, namespace: str, kind: str, role: str) -> Body:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": namespace},
        "roleRef": {"apiGroup": RBAC, "kind": kind, "name": role},
        "subjects": [{"apiGroup": RBAC, "kind": "User", "name": user}],
    }


def as_the_operator(plane: ControlPlane, folder: Path) -> Path:
    """A kubeconfig of the operator's own account."""
    return plane.authority.kubeconfig(folder / "operator.kubeconfig", plane.server, plane.authority.client(ACCOUNT))


@dataclass(frozen=True)
class Tenant:
    """A user, who may edit one namespace."""

    kube: Kube
    admin: Kube
    namespace: str
    user: str

    def path(self, group: str, plural: str, name: str = "") -> str:
        """Where an object of this namespace is; `group` is api/v1 or apis/<group>/<version>."""
        return f"/{group}/namespaces/{self.namespace}/{plural}{f'/{name}' if name else ''}"

    async def is_given(self, rule: Body) -> None:
        """Let the user do something more."""
        name = "-".join(rule["resources"]).replace("/", "-")
        where = f"/apis/{RBAC}/v1/namespaces/{self.namespace}"
        binding = _binding(name, self.user, self.namespace, "Role", name)
        await self.admin.call("POST", f"{where}/roles", {"metadata": {"name": name}, "rules": [rule]})
        await self.admin.call("POST", f"{where}/rolebindings", binding)

    async def does(self, method: str, path: str, body: Body | None = None, kind: str = "application/json") -> str:
        """Try something: what the API server says against it, empty if it was done."""
        try:
            await self.kube.call(method, path, body, kind)
        except LookupError as refused:
            return str(refused)
        return ""


@asynccontextmanager
async def tenant(plane: ControlPlane, admin: Kube, namespace: str) -> AsyncIterator[Tenant]:
    """A new namespace, and a user with the role `edit` in it."""
    user = f"user-of-{namespace}"
    await make_namespace(admin, namespace)
    await admin.call("POST", f"/apis/{RBAC}/v1/namespaces/{namespace}/rolebindings", _may_edit(user, namespace))
    connector = admin._session.connector
    session = aiohttp.ClientSession(connector=connector, connector_owner=False, headers={"Impersonate-User": user})
    async with session:
        made = Tenant(Kube(plane.server, session), admin, namespace, user)

        async def may() -> bool:
            return not await made.does("GET", made.path("apis/sluice.dev/v1alpha1", "finetunejobs"))

        await until(may)
        try:
            yield made
        finally:
            await admin.call("DELETE", f"/api/v1/namespaces/{namespace}")
