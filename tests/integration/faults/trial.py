"""Operators behind a proxy in one namespace, and what becomes of them. Which fault strikes when: strikes.py."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dev.cluster.control_plane import ControlPlane
from dev.cluster.processes import Processes
from dev.faults.asked import Asked
from dev.faults.proxy import FaultProxy
from dev.faults.rules import Answer, Event, GoOn, Rule
from tests.integration.claim_scene import ClaimScene
from tests.integration.faults.journeys import JOURNEYS
from tests.integration.faults.outcome import write_name
from tests.integration.nodes import MERGE_PATCH, Nodes
from tests.integration.running_operator import RunningOperator

DEADLINE_SECONDS = 90
LEASE_SECONDS = 10


@dataclass
class Recorder(Rule):
    """What passes: the operator's writes, and the events that its watches bring."""

    namespace: str
    writes: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)

    async def request(self, asked: Asked, go_on: GoOn) -> Answer:
        """Count."""
        if is_write(asked):
            self.writes[write_name(asked)] += 1
        return await go_on(asked)

    async def event(self, asked: Asked, event: Event) -> Event | None:
        """Count."""
        if event["type"] != "BOOKMARK" and is_here(event, self.namespace):
            self.events[asked.plural] += 1
        return event


@dataclass
class Trial:
    """One namespace, and the operators that serve it."""

    plane: ControlPlane
    scene: ClaimScene
    nodes: Nodes
    folder: Path
    proxy: FaultProxy
    settings: dict[str, object]
    operators: list[RunningOperator] = field(default_factory=list)
    recorder: Recorder = field(init=False)

    @classmethod
    @asynccontextmanager
    async def set_up(
        cls, plane: ControlPlane, scene: ClaimScene, folder: Path, **settings: object
    ) -> AsyncIterator["Trial"]:
        """With one operator."""
        async with FaultProxy.between(plane) as proxy:
            trial = cls(plane, scene, Nodes(scene.kube), folder, proxy, {"lease_seconds": LEASE_SECONDS, **settings})
            trial.recorder = Recorder(scene.namespace)
            proxy.rules.append(trial.recorder)
            try:
                yield trial
            finally:
                for operator in trial.operators:
                    operator.kill()
                await trial.nodes.remove_all()

    async def start(self) -> RunningOperator:
        """One operator more."""
        name = f"operator-{len(self.operators)}"
        running = await asyncio.to_thread(
            RunningOperator.start,
            self.folder,
            name,
            self.proxy.kubeconfig,
            self.scene.namespace,
            self.settings,
        )
        self.operators.append(running)
        return running

    async def kill(self) -> None:
        """SIGKILL the operator, and start another.

        That its lease has run out is written by hand: the process that held it is surely dead, and nobody need wait.
        """
        await asyncio.to_thread(self.operators[-1].kill)
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.scene.namespace}/leases/sluice-operator"
        try:
            await self.scene.kube.call("PATCH", path, {"spec": {"holderIdentity": ""}}, MERGE_PATCH)
        except LookupError as error:
            if ": 404 " not in str(error):
                raise
        await self.start()

    async def pause(self) -> None:
        """Stop the leader until another one leads; it wakes while what it was about to write arrives."""
        leader = self.operators[-1]
        leader.pause()
        try:
            successor = await self.start()
            await successor.leads()
        finally:
            asyncio.get_running_loop().call_soon(leader.wake)

    async def restart_etcd(self) -> None:
        """Kill it; what it has written is there."""
        await asyncio.to_thread(Processes(self.plane.state).restart, "etcd")

    async def play(self, journey: str) -> None:
        """The operator and the journey, from beginning to end."""
        self.scene.history.patience = DEADLINE_SECONDS
        await self.start()
        await JOURNEYS[journey](self.scene, self.nodes)


def is_write(asked: Asked) -> bool:
    """Whether it is one of the writes at which something may go wrong. Renewals of the lease come at any time."""
    return asked.writes and bool(asked.plural) and (asked.verb, asked.plural) != ("update", "leases")


def is_here(event: Event, namespace: str) -> bool:
    """Whether an event is about something in the scene."""
    return bool(event["object"].get("metadata", {}).get("namespace") == namespace)
