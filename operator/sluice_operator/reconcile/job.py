"""Bring one FineTuneJob nearer to its spec."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import OUTCOMES_ANNOTATION
from sluice_api.publish import Publish
from sluice_api.reasons import Reason
from sluice_api.stages import ExportResult, Stage
from sluice_operator.cluster.patches import HOSTNAME_LABEL
from sluice_operator.facts.retries import REFUSED
from sluice_operator.manifests.adapter import adapter
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, adapter_key, key_of
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.job.situation import JobDecision, refused, unmet_since
from sluice_operator.plan.job.stages import next_to_prepare
from sluice_operator.reconcile.attempt_writes import attempt_writes, refused_writes
from sluice_operator.reconcile.context import Context, Requeue, until
from sluice_operator.reconcile.fence import planned
from sluice_operator.reconcile.look import look_for_orphans, look_for_pods, look_for_refused_pod, orphan_writes
from sluice_operator.reconcile.refused import reason_of
from sluice_operator.reconcile.status import status_writes
from sluice_operator.status.job import job_status
from sluice_operator.writes import (
    Annotate,
    Apply,
    Bind,
    Delete,
    Event,
    Manifest,
    Nominate,
    Plan,
    Refused,
    Write,
    Writes,
)


async def reconcile_job(key: Key, c: Context, now: datetime) -> Requeue:
    """Bring one FineTuneJob one step nearer to its spec."""
    await look_for_orphans(key, c)
    await look_for_pods(key, c)
    words = await look_for_refused_pod(key, c, now)

    job = c.store.world().jobs.get(key)
    plan = planned(c, key, lambda world: job_plan(world, key, c, words, now), now)

    refusal = await _do(plan, job, c)
    if refusal is not None and job is not None:
        plan = planned(c, key, lambda world: refused_plan(world, job, plan, refusal, now), now)
        await c.cluster.do(plan.writes)
    return until(plan.again_at, now)


@dataclass(frozen=True, slots=True)
class JobPlan(Plan):
    """The writes for one job, with the decision that they come from."""

    decision: JobDecision | None = None


def job_plan(world: World, key: Key, c: Context, refused_pod: str, now: datetime) -> Plan:
    """What to do for one job now. If the job is gone: what to do about its orphans.

    Args:
        refused_pod: the API server's message when it refused the pod of a stage; empty if it did not.
    """
    orphans, job = orphan_writes(key, c), world.jobs.get(key)
    if job is None or (job.spec.managed_by and job.status.conditions):
        return Plan(orphans)  # its status is another controller's too, once it says so
    wait = c.wait_of(job.spec.resources.pool, key)
    decision = plan_job(world, job, now, c.settings.limits, wait, refused_pod)
    status = job_status(world, job, decision, now)
    writes = (*orphans, *_acts(world, job, decision, c, now), *status_writes(job, status), *_events(job, decision))
    return JobPlan(writes, decision.again_at, decision.ends_with, decision)


def refused_plan(world: World, job: FineTuneJob, plan: Plan, refusal: Refused, now: datetime) -> Plan:
    """What to do after the API server has refused a write of a plan: tell people, and record a refused attempt."""
    decision = plan.decision if isinstance(plan, JobPlan) else None
    if decision is None:  # its orphans, or what tells people that it is set aside: tried again at the next look
        return replace(plan, writes=())
    shown = refused(decision, reason_of(refusal), refusal.message, unmet_since(job, decision), now)
    writes: Writes = (*status_writes(job, job_status(world, job, shown, now)), *_events(job, shown))
    if decision.start is not None and not isinstance(refusal.write, Annotate):
        writes += refused_writes(world, job, decision.start, refusal, now)
    return Plan(writes, shown.again_at, shown.ends_with)


def _acts(world: World, job: FineTuneJob, decision: JobDecision, c: Context, now: datetime) -> Iterator[Write]:
    """The record is written first: the writes after it may remove the objects that it was read from."""
    key, uid = key_of(job), job.metadata.uid
    if decision.record is not None:
        yield Annotate(key, uid, {OUTCOMES_ANNOTATION: decision.record.to_json()})
    if decision.start is not None:
        yield from attempt_writes(world, job, decision.start, c)
    for pod, node in decision.bind:
        yield Bind(pod.key, pod.uid, _hostname(world, node), now)
        yield Nominate(pod.key, pod.uid, node)
    if decision.publish is not None and job.spec.publish is not None:
        yield Apply(_adapter(world, job, job.spec.publish, decision.publish))
    for doomed in decision.delete:
        yield Delete(doomed.key, doomed.uid, foreground=True)
    if decision.remove:
        yield Delete(key, uid)


def _hostname(world: World, node: str) -> str:
    """A node's hostname label, which a node selector needs. It may differ from the node's name."""
    view = world.nodes.get(Key("Node", "", node))
    return view.labels.get(HOSTNAME_LABEL, node) if view else node


def _adapter(world: World, job: FineTuneJob, publish: Publish, export: ExportResult) -> Manifest:
    """The Adapter to apply. If the job may replace one, it carries that one's uid, whoever made it."""
    manifest = adapter(job, publish, export)
    there = world.adapters.get(adapter_key(job.metadata.namespace, publish.name))
    if publish.replace and there is not None:
        manifest["metadata"]["uid"] = there.metadata.uid
    return manifest


def _events(job: FineTuneJob, decision: JobDecision) -> Writes:
    """An event whenever the decision's reason changes."""
    if decision.reason == job.status.summary:
        return ()
    level = "Warning" if decision.failed or decision.reason in _WARN else "Normal"
    return (Event(key_of(job), job.metadata.uid, level, decision.reason, decision.message),)


_WARN = frozenset(
    {
        Reason.STALLED,
        Reason.NOT_BOUND,
        Reason.UNSCHEDULABLE,
        Reason.IMAGE_NOT_PULLED,
        Reason.POD_REFUSED,
        Reason.GPU_FAILED,
        Reason.NODE_NOT_READY,
        Reason.OUTPUT_NOT_WRITABLE,
        Reason.OUTPUT_UNREACHABLE,
        Reason.ACCESS_REFUSED,
        *REFUSED,
    }
)


async def _do(plan: Plan, job: FineTuneJob | None, c: Context) -> Refused | None:
    """Do a plan's writes. Other decisions count a Prepare while it is made; after that the next job is woken."""
    start = plan.decision.start if isinstance(plan, JobPlan) and plan.decision else None
    if job is None or start is None or start.stage is not Stage.PREPARE:
        return await c.cluster.do(plan.writes)
    c.store.findings.start(key_of(job), begins=True)
    try:
        return await c.cluster.do(plan.writes)
    finally:
        c.store.findings.start(key_of(job), begins=False)
        for other in next_to_prepare(c.store.world(), job.spec.resources.pool):
            c.enqueue(key_of(other))
