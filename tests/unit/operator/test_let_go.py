"""What a deleted object said is let go of: whoever writes and deletes many must not fill the operator's memory."""

import gc
import tracemalloc
from collections.abc import Callable
from weakref import ref

import pytest

from sluice_api.dataset import FieldNames
from sluice_api.finetunejob import FineTuneJob
from sluice_operator.observe.parse import stored_key, uid_of
from sluice_operator.observe.store import Store
from sluice_operator.plan.pool.reservations import alike
from tests.unit.operator.bodies import Body, adapter, engine, finetunejob, read

KIB = 1024
TEMPLATE = 12_000


def large_job(number: int) -> Body:
    """A job that says much that no other says."""
    raw = finetunejob(f"job-{number}", number + 1)
    raw["spec"]["model"]["chatTemplate"] = {"inline": f"{number:06}" * (TEMPLATE // 6)}
    raw["spec"]["dataset"] = {
        "uri": f"https://host/{number:0900}",
        "fields": {"text": f"{number:0128}"},
        "steps": [{"filter": {"words": [f"{number:06}{place:058}" for place in range(32)]}}],
    }
    raw["spec"]["lora"] = {"targetModules": [f"layer{number:06}_{place:0100}" for place in range(64)]}
    return raw


def sparse_job(number: int) -> Body:
    """A job with a set of fields that no other job sets."""
    raw = finetunejob(f"job-{number}", number + 1)
    names = list(FieldNames.model_fields)[:12]
    raw["spec"]["dataset"]["fields"] = {name: "x" for place, name in enumerate(names) if number >> place & 1}
    return raw


def large_engine(number: int) -> Body:
    raw = engine(f"engine-{number}", number + 1)
    raw["spec"]["model"]["chatTemplate"] = {"inline": f"{number:06}" * (TEMPLATE // 6)}
    return raw


def many_adapters(number: int) -> Body:
    raw = adapter(f"adapter-{number}", number + 1, on="chat")
    raw["spec"]["source"]["uri"] = f"s3://bucket/{number:0400}"
    return raw


def parsed(raw: Body) -> FineTuneJob:
    job = read(raw)
    assert isinstance(job, FineTuneJob)
    return job


def put_and_removed(make: Callable[[int], Body], numbers: range) -> None:
    """Let the objects come and go, one after another, as the operator sees them."""
    store = Store()
    for number in numbers:
        found = read(make(number))
        store.put(found, seen=True)
        for job in store.world().jobs.values():
            alike(store.world(), job)
        store.remove(stored_key(found), uid_of(found))


@pytest.mark.parametrize("make", [large_job, sparse_job, large_engine, many_adapters])
def test_deleted_objects_take_no_memory(make: Callable[[int], Body]) -> None:
    put_and_removed(make, range(40))
    gc.collect()
    tracemalloc.start()
    try:
        put_and_removed(make, range(1000, 1400))
        gc.collect()
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert left < 100 * KIB, f"{left // KIB} KiB are left of 400 deleted objects"


def test_equal_parts_of_jobs_are_one_object() -> None:
    """Or thousands of jobs that differ in little would take several times the memory."""
    first, second = parsed(large_job(1)), parsed(large_job(1))
    assert first.spec.model is second.spec.model
    assert first.spec.dataset is second.spec.dataset
    assert first.spec.__pydantic_fields_set__ is second.spec.__pydantic_fields_set__


def test_a_part_lives_as_long_as_its_last_job() -> None:
    first, second = parsed(large_job(1)), parsed(large_job(1))
    part = ref(first.spec.model)
    del first
    assert part() is second.spec.model
    del second
    assert part() is None
