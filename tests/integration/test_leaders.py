"""Two who would lead: one acts. Also when one is killed, asked to end, or paused in the middle of a claim."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dev.cluster.control_plane import ControlPlane
from dev.faults.proxy import FaultProxy
from dev.faults.rules import error_event
from tests.integration.claiming_process import SECONDS
from tests.integration.conftest import MakeOperator
from tests.integration.progress_scene import JOB_SPEC, Kube, until
from tests.integration.running_operator import ROOT

pytestmark = pytest.mark.integration

LONGER_THAN_PATIENCE = 90
"""Seconds of a lease whose end no test lives to see."""


async def holder(kube: Kube, namespace: str) -> tuple[str, int]:
    """Who holds the operator's lease, and how many have before."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/sluice-operator"
    spec = (await kube.call("GET", path))["spec"]
    return spec["holderIdentity"], spec["leaseTransitions"]


async def test_standby_leads_when_the_leader_is_killed(operator: MakeOperator, kube: Kube, namespace: str) -> None:
    one = operator("operator-1", lease_seconds=5)
    await one.leads()
    two = operator("operator-2", lease_seconds=5)
    _, term = await holder(kube, namespace)
    await _ready(two.metrics_port)
    assert not two.events("leading")
    one.kill()
    await two.leads()
    name, next_term = await holder(kube, namespace)
    assert (name.partition("_")[0], next_term) == ("operator-2", term + 1)


async def test_leader_that_is_asked_to_end_releases_the_lease_at_once(
    operator: MakeOperator, kube: Kube, namespace: str
) -> None:
    one = operator("operator-1", lease_seconds=LONGER_THAN_PATIENCE)
    await one.leads()
    two = operator("operator-2", lease_seconds=LONGER_THAN_PATIENCE)
    await _ready(two.metrics_port)
    assert one.end() == 0
    await two.leads()


async def test_leader_label_moves_to_the_new_leaders_pod(operator: MakeOperator, kube: Kube, namespace: str) -> None:
    for name in ("operator-1", "operator-2"):
        pod = {"metadata": {"name": name}, "spec": {"containers": [{"name": "operator", "image": "nothing"}]}}
        await kube.call("POST", f"/api/v1/namespaces/{namespace}/pods", pod)

    async def labelled() -> list[str]:
        pods = await kube.call("GET", f"/api/v1/namespaces/{namespace}/pods?labelSelector=sluice.dev/leader=true")
        return [pod["metadata"]["name"] for pod in pods["items"]]

    one = operator("operator-1", lease_seconds=5)
    await until(lambda: _equals(labelled, ["operator-1"]))
    one.kill()
    operator("operator-2", lease_seconds=5)
    await until(lambda: _equals(labelled, ["operator-2"]))


async def test_a_watch_error_does_not_end_the_operator(
    operator: MakeOperator, proxy: FaultProxy, kube: Kube, namespace: str
) -> None:
    running = operator("operator-1", kubeconfig=proxy.kubeconfig)
    await running.leads()
    for plural in ("finetunejobs", "jobs", "pods", "nodes"):
        await until(partial(_watched, proxy, plural))
        assert proxy.send(plural, error_event(500)) == 1
    await running.logged("a watch broke and begins anew", times=4)
    body = {"apiVersion": "sluice.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "j"}, "spec": JOB_SPEC}
    path = f"/apis/sluice.dev/v1alpha1/namespaces/{namespace}/finetunejobs"
    await kube.call("POST", path, body)

    async def decided() -> Any:
        return (await kube.call("GET", f"{path}/j")).get("status", {}).get("summary")

    assert await until(decided)
    assert running.process.poll() is None


class Claimant:
    """tests.integration.claiming_process as a process."""

    def __init__(self, folder: Path, plane: ControlPlane, namespace: str, name: str) -> None:
        self.log = folder / f"{name}.log"
        environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig), "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.claiming_process", namespace, name],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=ROOT,
            )

    def said(self, word: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(word)]

    async def says(self, word: str, times: int = 1) -> None:
        async def heard() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return len(self.said(word)) >= times

        await until(heard)

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def claimants(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[tuple[Claimant, Claimant]]:
    pair = Claimant(tmp_path, control_plane, namespace, "one"), Claimant(tmp_path, control_plane, namespace, "two")
    yield pair
    for claimant in pair:
        claimant.end()


async def test_paused_leader_makes_at_most_the_claim_that_it_was_making(
    claimants: tuple[Claimant, Claimant], kube: Kube, namespace: str
) -> None:
    async def first() -> Claimant | None:
        return next((claimant for claimant in claimants if claimant.said("made")), None)

    old: Claimant = await until(first)
    (new,) = (claimant for claimant in claimants if claimant is not old)
    await old.says("made", times=5)
    old.process.send_signal(signal.SIGSTOP)
    await new.says("made", times=5)
    before = {job["metadata"]["name"] for job in await _claims(kube, namespace)}
    old.process.send_signal(signal.SIGCONT)
    await old.says("stopped")
    await asyncio.sleep(SECONDS)  # whatever was still under way has arrived, and nobody else may lead meanwhile

    after = await _claims(kube, namespace)
    terms = {job["metadata"]["name"]: int(job["metadata"]["annotations"]["test/term"]) for job in after}
    olds_term, news_term = (int(claimant.said("leading")[0].split()[1]) for claimant in (old, new))
    assert news_term == olds_term + 1
    late = [name for name, term in terms.items() if term == olds_term and name not in before]
    assert len(late) <= 1, "it went on claiming after it had lost the lease"
    for job in after:
        assert job["spec"]["template"]["spec"]["schedulingGates"], "a late claim is a gated Job: it disturbs nobody"
    assert len(old.said("leading")) == 1
    assert new.process.poll() is None


async def _claims(kube: Kube, namespace: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await kube.call("GET", f"/apis/batch/v1/namespaces/{namespace}/jobs"))["items"]
    return found


async def _watched(proxy: FaultProxy, plural: str) -> bool:
    return proxy.watches(plural) == 1


async def _equals(question: Any, expected: object) -> bool:
    return bool(await question() == expected)


async def _ready(port: int) -> None:
    """Wait until an operator says that it could lead."""

    async def answers() -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    await until(answers)
