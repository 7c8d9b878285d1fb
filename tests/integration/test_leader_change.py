"""Two operators, of which the leader is killed or stopped at chosen writes, and views that lie: always the same end."""

import asyncio
import re
from collections import Counter
from pathlib import Path

import pytest
import pytest_asyncio

from dev.cluster.control_plane import ControlPlane
from dev.faults.proxy import FaultProxy
from dev.faults.rules import Hold, Lose, error_event
from sluice_api.stages import Stage
from tests.integration.claim_scene import ClaimScene, borrowed_slots, claim_of, is_gated
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import Kube
from tests.integration.running_operator import RunningOperator

pytestmark = pytest.mark.integration

LEASE_SECONDS = 4
SECOND = "second-operator"

KILLED_AT = {
    "the claim": r"POST .*/jobs$",
    "the gate's removal": r"PATCH .*/pods/tone-[^/]*-train-1-\w+\?",
    "the stop of the slot": r"PATCH .*/deployments/chat-\d\?",
    "the slot's return": r"PATCH .*/deployments/chat-\d\?fieldManager=sluice&force",
    "the export": r"POST .*/jobs$",
}
AFTER_TRAINING = ("the slot's return", "the export")
STOPPED_AT = ("the claim", "the gate's removal", "the stop of the slot")


@pytest.fixture
def held(proxy: FaultProxy) -> Hold:
    """Lets everything pass until a test says what to hold."""
    hold = Hold()
    proxy.rules.append(hold)
    return hold


@pytest.fixture
def own_kubeconfig(control_plane: ControlPlane, tmp_path: Path) -> Path:
    """Credentials by which the audit log tells the second operator from the first."""
    authority = control_plane.authority
    return authority.kubeconfig(tmp_path / SECOND, control_plane.server, authority.client(SECOND, "system:masters"))


@pytest_asyncio.fixture
async def pair(
    scene: ClaimScene, nodes: Nodes, proxy: FaultProxy, operator: MakeOperator, own_kubeconfig: Path
) -> tuple[RunningOperator, RunningOperator]:
    """A leader behind the proxy, a standby, and an engine of two slots that serves."""
    await nodes.add(f"{scene.namespace}-n1", gpus=2)
    leader = operator("first", proxy.kubeconfig, lease_seconds=LEASE_SECONDS)
    await scene.engine("chat", replicas=2)
    await leader.leads()
    standby = operator("second", own_kubeconfig, lease_seconds=LEASE_SECONDS)
    await scene.serves(2)
    return leader, standby


def hold(held: Hold, write: str) -> None:
    pattern = re.compile(KILLED_AT[write])
    held.which = lambda asked: pattern.search(asked.line) is not None


@pytest.mark.parametrize("write", list(KILLED_AT))
async def test_successor_continues_from_each_write_of_a_killed_leader(
    scene: ClaimScene, held: Hold, pair: tuple[RunningOperator, RunningOperator], write: str
) -> None:
    leader, successor = pair
    if write in AFTER_TRAINING:
        await scene.job("tone", publish="chat")
        await scene.running("tone")
        await scene.history.until(lambda: scene.lent() == 1, "one slot is lent")
        hold(held, write)
        await scene.finishes("tone")
    else:
        hold(held, write)
        await scene.job("tone", publish="chat")
    await held.at()
    leader.kill()
    await successor.leads()
    if write not in AFTER_TRAINING:
        await scene.finishes("tone")
    await scene.serves(2)
    await scene.finishes("tone", Stage.EXPORT)
    await scene.history.until(lambda: scene.history.now["adapters"].get("tone"), "the Adapter is written")
    assert scene.lent() == 0
    assert _jobs_made(scene) == {"train-1": 1, "export-1": 1}


def _jobs_made(scene: ClaimScene) -> dict[str, int]:
    """How often a Job of each stage and attempt was created, by whomever."""
    made = (w for w in scene.writes() if (w.verb, w.resource, w.status) == ("create", "jobs", 201))
    return dict(Counter("-".join(write.name.split("-")[-2:]) for write in made))


@pytest.mark.parametrize("write", STOPPED_AT)
async def test_late_write_of_a_former_leader_has_no_effect(
    scene: ClaimScene, held: Hold, pair: tuple[RunningOperator, RunningOperator], write: str
) -> None:
    """It is stopped (SIGSTOP) with a write under way, and that write arrives when the successor has long trained."""
    leader, successor = pair
    hold(held, write)
    await scene.job("tone")
    await held.at()
    leader.pause()
    await successor.leads()
    await scene.running("tone")
    await scene.history.until(lambda: scene.lent() == 1, "one slot is lent")
    await asyncio.sleep(1)
    states, sizes = _states(scene), scene.sizes()
    await held.let_go()
    leader.wake()
    await leader.logged("no longer leading")
    await asyncio.sleep(2)
    assert (_states(scene), scene.sizes()) == (states, sizes)
    assert _jobs_made(scene) == {"train-1": 1}
    await scene.finishes("tone")
    await scene.serves(2)
    await scene.finishes("tone", Stage.EXPORT)
    await scene.succeeds("tone")
    assert [w for w in scene.writes() if w.resource == "pods" and w.name.endswith("train-2")] == []


def _states(scene: ClaimScene) -> list[str]:
    return [slot["state"] for slot in scene.status("inferenceengines", "chat")["slots"]]


async def test_late_claim_of_a_former_leader_drains_no_replica(
    scene: ClaimScene, held: Hold, pair: tuple[RunningOperator, RunningOperator]
) -> None:
    """The former leader's claim for `late` arrives when the new one has lent the slot to `quick`."""
    leader, successor = pair
    hold(held, "the claim")
    await scene.job("late")
    await held.at()
    leader.pause()
    await scene.patch("finetunejobs", "late", {"spec": {"suspend": True}})
    await successor.leads()
    await scene.job("quick")
    await scene.running("quick")
    await scene.patch("finetunejobs", "late", {"spec": {"suspend": False}})
    await scene.job_says("late", "EngineAtFloor")
    await held.let_go()
    leader.wake()
    (late,) = await scene.history.until(lambda: scene.stage_jobs("late"), "the late claim arrives")
    (quick,) = scene.stage_jobs("quick")
    assert borrowed_slots([late]) == borrowed_slots([quick])
    first, second = claim_of(late), claim_of(quick)
    assert first
    assert second
    assert first.term < second.term
    await scene.history.until(lambda: not scene.stage_jobs("late"), "the late claim is taken back")
    assert all(is_gated(v.body) for v in scene.history.ordered("pods") if v.name.startswith("late"))
    assert scene.stage_jobs("quick") == [scene.history.now["jobs"][quick["metadata"]["name"]]]
    assert scene.lent() == 1
    await scene.finishes("quick")
    await scene.finishes("late", attempt=2)
    await scene.serves(2)


@pytest.mark.parametrize("repair", [410, 500, "the next full list"])
async def test_loan_is_returned_though_delete_events_were_missed(
    scene: ClaimScene, nodes: Nodes, proxy: FaultProxy, operator: MakeOperator, kube: Kube, repair: int | str
) -> None:
    """Its watches lose every DELETED event; then they break, or the next list is due."""
    await nodes.add(f"{scene.namespace}-n1", gpus=2)
    operator("alone", proxy.kubeconfig, resync_seconds=8 if isinstance(repair, str) else 3600)
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    await scene.job("tone")
    await scene.running("tone")
    await scene.history.until(lambda: scene.lent() == 1, "one slot is lent")
    proxy.rules.append(Lose(lambda event: event["type"] == "DELETED"))
    await kube.call("DELETE", scene.path("finetunejobs", "tone"))
    await scene.history.until(lambda: not scene.stage_jobs("tone"), "its Job is gone")
    if isinstance(repair, int):
        for plural in ("finetunejobs", "jobs", "pods", "deployments"):
            proxy.send(plural, error_event(repair))
    await scene.serves(2)
    await scene.job("next")
    await scene.running("next")


async def test_trainer_stopped_while_no_operator_runs_costs_no_attempt(
    scene: ClaimScene, nodes: Nodes, operator: MakeOperator, kube: Kube
) -> None:
    """Its node is drained: when the next operator looks, the pod and its last words are gone."""
    await nodes.add(f"{scene.namespace}-n1", gpus=2)
    first = operator("first", lease_seconds=LEASE_SECONDS)
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    await scene.job("tone")
    pod = await scene.running("tone")
    await scene.history.until(lambda: scene.lent() == 1, "one slot is lent")
    first.kill()
    await kube.call("DELETE", f"/api/v1/namespaces/{scene.namespace}/pods/{pod['metadata']['name']}")
    await scene.history.until(lambda: pod["metadata"]["name"] not in scene.history.now["pods"], "the pod is gone")
    operator("second", lease_seconds=LEASE_SECONDS)
    await scene.running("tone", attempt=2)
    (lost,) = await scene.history.until(lambda: scene.status("finetunejobs", "tone").get("attempts"), "it is recorded")
    assert (lost["attempt"], lost["reason"]) == (1, "Requeued")
