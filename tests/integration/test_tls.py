"""The operator behind TLS: its certificate, who trusts it, and who may scrape its metrics. All real but the pods."""

import base64
import ssl
from pathlib import Path

import aiohttp

from dev.cluster.ports import free_port
from sluice_api.reports import TRAINING_REPORTS_PATH
from sluice_operator.certificates.keeper import SECRET
from sluice_operator.manifests.trust import ENTRY, NAME
from tests.integration.claim_scene import ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import Kube, until

RBAC = "/apis/rbac.authorization.k8s.io/v1"


async def test_reports_and_metrics_use_tls_and_metrics_need_a_token(
    operator: MakeOperator, scene: ClaimScene, nodes: Nodes, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    port = free_port()
    running = operator(
        report_url=f"https://127.0.0.1:{port}", progress_port=port, metrics_access="Token", lease_seconds=5
    )
    await running.leads()
    await nodes.add(f"{namespace}-n1", gpus=1)
    await scene.job("tone", prepared=False)

    async def prepares() -> list[object]:
        return list((await kube.call("GET", f"/apis/batch/v1/namespaces/{namespace}/jobs"))["items"])

    await until(prepares)  # what its pod trusts is there before it
    trusted = (await kube.call("GET", f"/api/v1/namespaces/{namespace}/configmaps/{NAME}"))["data"][ENTRY]
    secret = await kube.call("GET", f"/api/v1/namespaces/{namespace}/secrets/{SECRET}")
    assert base64.b64decode(secret["data"]["ca.crt"]).decode() == trusted
    trust = tmp_path / "ca.crt"
    trust.write_text(trusted)

    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=trust))
    async with aiohttp.ClientSession(connector=connector) as session:

        async def status(url: str, token: str = "", method: str = "GET") -> int:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with session.request(method, url, headers=headers) as answer:
                return answer.status

        assert await status(f"https://127.0.0.1:{port}{TRAINING_REPORTS_PATH}", method="POST") == 401

        metrics = f"https://127.0.0.1:{running.metrics_port}/metrics"
        assert await status(f"https://127.0.0.1:{running.metrics_port}/livez") == 200
        assert await status(metrics) == 401
        stranger = await _token(kube, namespace, "stranger")
        assert await status(metrics, stranger) == 403

        await _may_scrape(kube, namespace, "prometheus")

        async def scraped() -> bool:  # with a new token each time: a refusal is believed for a minute
            return await status(metrics, await _token(kube, namespace, "prometheus")) == 200

        await until(scraped)  # the API server's authorizer sees a new binding a moment later
        assert await status(metrics, stranger) == 403


async def _may_scrape(kube: Kube, namespace: str, account: str) -> None:
    """Bind an account to the right to get /metrics, as the chart's ClusterRole has it."""
    name = f"{namespace}-metrics-reader"
    rules = [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
    await kube.call("POST", f"{RBAC}/clusterroles", {"metadata": {"name": name}, "rules": rules})
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }
    await kube.call("POST", f"{RBAC}/clusterrolebindings", binding)


async def _token(kube: Kube, namespace: str, name: str) -> str:
    """A token of a ServiceAccount, which is made unless it is there, for the API server itself."""
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    try:
        await kube.call("POST", accounts, {"metadata": {"name": name}})
    except LookupError as error:
        if ": 409 " not in str(error):
            raise
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    return str((await kube.call("POST", f"{accounts}/{name}/token", asked))["status"]["token"])
