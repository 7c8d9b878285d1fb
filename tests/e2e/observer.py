"""What happened all along: every state of a journey's pods, jobs and engines, for rules that always hold."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

from tests.e2e.kubectl import Kubectl, Object, Objects, Watches
from tests.e2e.stage import GPU, is_here

WATCHED = ("pods", "jobs", "ie", "ftj")
A_LONG_TIME = 3600


class Observed:
    """The states that were seen of each kind, in their order."""

    def __init__(self) -> None:
        self.history: dict[str, list[Objects]] = {kind: [] for kind in WATCHED}

    def moments(self, kind: str, **labels: str) -> list[list[Object]]:
        """At each moment the objects that there were, of those with these labels (sluice.dev/...)."""
        wanted = {f"sluice.dev/{name}": value for name, value in labels.items()}
        return [
            [each for each in state.values() if wanted.items() <= each["metadata"].get("labels", {}).items()]
            for state in tuple(self.history[kind])
        ]

    def all(self, kind: str, **labels: str) -> Objects:
        """Every object that ever was, as last seen."""
        return {each["metadata"]["uid"]: each for moment in self.moments(kind, **labels) for each in moment}

    def trainers(self, job: str) -> dict[str, set[str]]:
        """Uids of the training pods of a job, by attempt."""
        found = defaultdict(set)
        for uid, pod in self.all("pods", job=job, stage="Train").items():
            found[pod["metadata"]["labels"]["sluice.dev/attempt"]].add(uid)
        return found

    def most_gpus(self) -> int:
        """The most GPUs that bound pods of one node ever had at once."""
        most = 0
        for pods in self.moments("pods"):
            used: dict[str, int] = defaultdict(int)
            for pod in pods:
                if holds_a_node(pod):
                    used[pod["spec"]["nodeName"]] += gpus_of(pod)
            most = max(most, *used.values(), 0)
        return most

    def slot_states(self, engine: str, namespace: str) -> set[str]:
        """Every state that a replica of an engine was ever said to be in."""
        return {slot["state"] for status in self._engine(engine, namespace) for slot in status["slots"]}

    def lent(self, engine: str, namespace: str) -> list[int]:
        """How many replicas an engine lent, each change of it: a loan is [0, 1, 0]."""
        return [lent for lent, _ in groupby(status["lent"] for status in self._engine(engine, namespace))]

    def _engine(self, name: str, namespace: str) -> list[Object]:
        """Every status of an engine."""
        engines = [e for moment in self.moments("ie") for e in moment if "status" in e]
        return [
            e["status"] for e in engines if (e["metadata"]["name"], e["metadata"]["namespace"]) == (name, namespace)
        ]

    def fewest_ready(self, engine: str) -> int:
        """The fewest replicas of an engine that were ready at once."""
        return min(sum(1 for pod in pods if is_ready(pod)) for pods in self.moments("pods", engine=engine))


class Observer:
    """Watches the cluster in the background."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl

    @contextmanager
    def watching(self) -> Iterator[Observed]:
        """Watch for as long as the block lasts. When it begins, one state of each kind has been seen."""
        observed = Observed()
        over = threading.Event()
        watches: Watches = []
        seen = {kind: threading.Event() for kind in WATCHED}

        def watch(kind: str) -> None:
            for state in self._kubectl.states(kind, seconds=A_LONG_TIME, watches=watches):
                if over.is_set():
                    return
                observed.history[kind].append({uid: found for uid, found in state.items() if is_here(found)})
                seen[kind].set()

        for kind in WATCHED:
            threading.Thread(target=watch, args=(kind,), daemon=True, name=f"watching {kind}").start()
        for kind in WATCHED:
            assert seen[kind].wait(30), f"nothing was seen of {kind}"
        try:
            yield observed
        finally:
            over.set()
            for process in watches:
                process.kill()


def holds_a_node(pod: Object) -> bool:
    """Whether a pod is bound and has not ended; one that is terminating still holds what it has."""
    return "nodeName" in pod["spec"] and pod["status"].get("phase") not in {"Succeeded", "Failed"}


def gpus_of(pod: Object) -> int:
    """GPUs that a pod asks for."""
    return sum(int(c.get("resources", {}).get("requests", {}).get(GPU, 0)) for c in pod["spec"]["containers"])


def is_ready(pod: Object) -> bool:
    """Whether a Service sends requests to a pod."""
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def restarts_of(pod: Object) -> int:
    """How often its containers were started again."""
    status = pod["status"]
    statuses = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    return sum(each["restartCount"] for each in statuses)
