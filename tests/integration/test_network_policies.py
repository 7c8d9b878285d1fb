"""NetworkPolicies on a real API server: there before the pods they are about, as the spec says, and gone when off."""

import pytest

from tests.integration.claim_scene import ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import Nodes

pytestmark = pytest.mark.integration


async def test_network_policies_precede_their_pods_and_follow_the_spec(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator
) -> None:
    policies = scene.history.now["networkpolicies"]
    await nodes.add(f"{namespace}-n1", gpus=2)
    running = operator()
    await scene.engine("chat", replicas=1)
    await scene.serves(1)
    await scene.job("tone")
    await scene.running("tone")

    about = {policy["metadata"]["ownerReferences"][0]["name"]: name for name, policy in policies.items()}
    assert set(about) == {"chat", "tone"}
    for owner, name in about.items():
        first = scene.history.ordered("networkpolicies", name)[0].revision
        pods = [pod for pod in scene.history.ordered("pods") if pod.name.startswith(f"{owner}-")]
        assert first < pods[0].revision

    await scene.patch("inferenceengines", "chat", {"spec": {"clients": {"from": "Anywhere"}}})
    await scene.history.until(
        lambda: "from" not in policies["chat-network"]["spec"]["ingress"][0], "the engine is open to everybody"
    )
    running.end()
    operator("operator-1", network='{"workloads": false}')
    await scene.history.until(lambda: "chat-network" not in policies, "the engine has no policy any more")
    assert len(scene.history.ordered("networkpolicies", "chat-network")) == 3
    assert scene.sizes() == {"chat-0": 1}
    assert len({pod.name for pod in scene.history.ordered("pods") if pod.name.startswith("chat-")}) == 1
