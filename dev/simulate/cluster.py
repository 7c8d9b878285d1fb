"""A cluster in memory with the operator in it: its own reconcilers, its own queue, its own routing of changes.

Each reconcile is a step, like all that Kubernetes does there (kubernetes.py), so every interleaving can happen.
"""

from collections.abc import Coroutine, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from dev.simulate.kubernetes import Kubernetes
from dev.simulate.written import PlayedWrites, Stopped
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reports import EngineReport
from sluice_api.resource import Metadata
from sluice_operator.facts.slots import slot_named, slot_of
from sluice_operator.handlers.routing import every_key, goes_first
from sluice_operator.handlers.watching import route_changes
from sluice_operator.observe.views import Key, PodView
from sluice_operator.observe.world import identity, key_of
from sluice_operator.progress.effects import concerned
from sluice_operator.progress.identity import Replica
from sluice_operator.reconcile.context import Context
from sluice_operator.reconcile.queue import Queue
from sluice_operator.reconcile.reconcilers import RECONCILERS
from sluice_operator.settings import Settings

Answer = TypeVar("Answer")
SETTINGS = Settings("sluice", "sluice-0", "http://reports", "trainer", "server")


class Cluster(Kubernetes):
    """Kubernetes with an operator in it."""

    def __init__(self) -> None:
        super().__init__()
        store = self.builder.store
        self.queue = self._new_queue()
        self.writes = PlayedWrites(self.builder, self)
        route_changes(store, self._enqueue, self._waits_for)
        self._lead()

    # What the operator does

    def work(self, most: int = 10_000) -> int:
        """Reconcile the keys that are due, as they come, and those that come of it; how many."""
        for done in range(most):
            key = self.queue.pop()
            if key is None:
                return done
            self.reconcile(key)
        return most

    def reconcile(self, key: Key) -> None:
        """One step for one object."""
        try:
            again = _run(RECONCILERS[key.kind](key, self.context, self.now))
        except Stopped:
            self._lead()
        else:
            self.queue.succeeded(key, again)

    def reconcile_pool(self) -> None:
        """Make the claims of those whose turn it is, of every pool."""
        for key in [key for key in self.keys() if key.kind == "GPUPool"]:
            self.reconcile(key)

    def reconcile_job(self, job: FineTuneJob) -> None:
        """Bring a job one step further."""
        self.reconcile(key_of(job))

    def reconcile_engine(self, engine: InferenceEngine) -> None:
        """Bring an engine one step further."""
        self.reconcile(key_of(engine))

    def sleeper(self) -> str:
        """Somebody who would write something if it was asked now, with what; empty if there is nobody.

        Asked when nothing is due: then somebody has slept through a change, or through a moment.
        """
        for key in sorted(self.keys()):
            before = self.builder.version
            self.writes.done.clear()
            self.reconcile(key)
            if self.builder.version != before:
                return f"{key}: {self.writes.done}"
        return ""

    def stop_at(self, write: int | None) -> None:
        """The leader stops before the next write but so many, and another one follows."""
        self.writes.left = write

    def late_write_arrives(self) -> None:
        """What a stopped leader was about to write when it stopped."""
        _run(self.writes.arrive())

    def _lead(self) -> None:
        """Another process leads: it knows what is there, and looks at everything."""
        self.writes.left = None
        store, self.queue = self.builder.store, self._new_queue()
        self.context = Context(store, self.writes, SETTINGS, self.queue.add, passing=lambda: 0.0)
        store.findings.begin_term(store.findings.term + 1, self.now)
        for key in sorted(self.keys(), key=lambda key: key.kind != "GPUPool"):
            self.queue.add(key)

    def _new_queue(self) -> Queue:
        return Queue(lambda key: goes_first(self.world, key), self._seconds)

    def _waits_for(self, key: Key) -> Iterable[Key]:
        return self.context.wakeups.of(key)

    def _enqueue(self, key: Key) -> None:
        self.queue.add(key)

    def _seconds(self) -> float:
        return self.now.timestamp()

    def heard(self, pod: PodView, before: EngineReport | None) -> None:
        """Wake those whom an engine's report concerns, as whoever takes it does."""
        found = slot_named(self.world, pod.key.namespace, pod.labels)
        slot = slot_of(self.world, *found) if found else None
        report = self.world.reports[pod.uid].report
        if found is not None and slot is not None and report != before:
            for key in concerned(self.world, Replica(pod, slot, found[0]), before, report):
                self.queue.add(key)

    def keys(self) -> set[Key]:
        """All that is ever reconciled."""
        return every_key(self.world, self.builder.store.links)

    def round(self, seconds: float = 1) -> None:
        """Everybody does their part once, and time passes."""
        self.work()
        self.controllers()
        self.scheduler()
        self.kubelet()
        self.work()
        self.pass_time(seconds)

    # What people and machines do

    def respec(self, resource: FineTuneJob | InferenceEngine, **spec: Any) -> None:
        """Change fields of a spec."""
        self._update(resource.KIND.kind, resource, spec=resource.spec.model_copy(update=spec))

    def delete_job(self, job: FineTuneJob) -> None:
        """Delete a job; its children go with it, later."""
        self.builder.store.remove(key_of(job), job.metadata.uid)

    def delete_job_that_is_kept(self, job: FineTuneJob) -> None:
        """Delete a job that has a finalizer: it stays, and so would its children."""
        self._update(job.KIND.kind, job, metadata=job.metadata.model_copy(update={"deletion_timestamp": self.now}))

    def orphan(self, job: FineTuneJob) -> None:
        """Delete a job and leave its children without an owner."""
        children = list(self.world.stage_jobs_of.get(identity(job), {}).values())
        self.delete_job(job)
        for stage_job in children:
            self._change(stage_job, owner=None)

    def pass_time(self, seconds: float) -> None:
        """Let the clock go on."""
        self.now += timedelta(seconds=seconds)

    def _update(self, kind: str, resource: FineTuneJob | InferenceEngine, **parts: Any) -> None:
        held: Mapping[Key, Any] = self.world.jobs if kind == "FineTuneJob" else self.world.engines
        current = held.get(Key(kind, resource.metadata.namespace, resource.metadata.name))
        if current is None or all(getattr(current, name) == value for name, value in parts.items()):
            return
        self.builder.version += 1
        metadata: Metadata = parts.pop("metadata", current.metadata)
        version = {"resource_version": str(self.builder.version)}
        self.builder.put(current.model_copy(update={**parts, "metadata": metadata.model_copy(update=version)}))


def _run(steps: Coroutine[Any, Any, Answer]) -> Answer:
    """Run what never waits to its end.

    Raises:
        RuntimeError: it waits for something that is not there in memory.
    """
    try:
        steps.send(None)
    except StopIteration as end:
        answer: Answer = end.value
        return answer
    raise RuntimeError("it waits for something")
