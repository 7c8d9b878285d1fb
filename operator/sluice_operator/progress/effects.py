"""Which objects an engine's report concerns: those whose next decision would read something new in it."""

from collections.abc import Iterator

from sluice_api.claim import SlotRef
from sluice_api.reports import EngineReport
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, adapter_key, engine_key, job_key
from sluice_operator.progress.identity import Replica


def concerned(world: World, replica: Replica, before: EngineReport | None, after: EngineReport) -> Iterator[Key]:
    """Keys to reconcile after a report; none when it only repeats the last."""
    namespace, engine = replica.slot.key.namespace, replica.slot.engine
    makes_room = _makes_room(before) != _makes_room(after)
    if makes_room or before is None or (before.serving, before.message) != (after.serving, after.message):
        yield engine_key(namespace, engine)
    if makes_room:
        yield from _borrowers(world, replica)
    changed = {adapter.name for adapter in set(before.adapters if before else ()) ^ set(after.adapters)}
    for name in sorted(changed):
        key = adapter_key(namespace, name)
        adapter = world.adapters.get(key)
        if adapter is not None and adapter.spec.engine == engine:
            yield key


def _makes_room(report: EngineReport | None) -> tuple[bool, int, bool]:
    """How far a replica is on its way to make room: requests in flight matter to nobody before it drains."""
    if report is None:
        return False, 0, False
    return report.draining, report.in_flight if report.draining else 0, report.asleep


def _borrowers(world: World, replica: Replica) -> Iterator[Key]:
    """Jobs whose live claim borrows this slot."""
    namespace, engine, index = replica.slot.key.namespace, replica.slot.engine, replica.slot.index
    for stage_job in world.claims_from.get((namespace, engine), {}).values():
        borrowed = stage_job.claim.borrowed if stage_job.claim and not stage_job.finished else ()
        if stage_job.owner and SlotRef(namespace=namespace, engine=engine, index=index) in borrowed:
            yield job_key(stage_job.key.namespace, stage_job.owner.name)
