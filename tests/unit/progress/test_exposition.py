"""What a scrape shows of the World: nothing outlives its object, and a standby shows no guess."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import ClientSession
from prometheus_client import CollectorRegistry

from dev.cluster.ports import free_port
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reports import TrainingReport
from sluice_operator import exposition
from sluice_operator.certificates.authority import renewed
from sluice_operator.exposition import WorldCollector
from sluice_operator.observe.parse import parse
from sluice_operator.observe.store import Store
from sluice_operator.observe.world import engine_key, job_key, pool_key
from sluice_operator.progress import connections
from tests.unit.certificates.serving import context_of
from tests.unit.progress.test_writer import clock
from tests.unit.progress.worlds import STAGE_JOB, TRAINER, Work, engine, job, store, whole

REPORT = TrainingReport.model_validate(
    {"attempt": 1, "sequence": 1, "activity": "Training", "step": 3, "totalSteps": 9, "loss": 1.5}
)
IDLE = Work()
KINDS = ("FineTuneJob", "InferenceEngine", "GPUPool")
POOLS = ("default", "a100", "tone")
PLACE = {"job_namespace": "team", "job_name": "tone"}


def shown(
    world: Store,
    *,
    leads: bool = True,
    training: Mapping[str, TrainingReport] | None = None,
    work: Work = IDLE,
) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(WorldCollector(world, lambda: leads, lambda: training or {}, work))
    return registry


def test_jobs_by_state() -> None:
    world = store(
        job("a", "1", status={"summary": "Training"}), job("b", "2", status={"summary": "Training"}), job("c", "3")
    )
    scrape = shown(world)
    assert scrape.get_sample_value("sluice_jobs", {"job_namespace": "team", "state": "Training"}) == 2
    assert scrape.get_sample_value("sluice_jobs", {"job_namespace": "team", "state": "Pending"}) == 1


def test_gpus_of_the_default_pool() -> None:
    node = parse(
        "Node",
        {
            "metadata": {
                "name": "gpu-1",
                "uid": "n",
                "resourceVersion": "1",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "status": {"allocatable": {"nvidia.com/gpu": "2"}, "conditions": [{"type": "Ready", "status": "True"}]},
        },
    )
    world = whole()
    world.put(node, seen=True)
    scrape = shown(world)
    by_use = {
        use: scrape.get_sample_value("sluice_gpus", {"pool": "default", "use": use})
        for use in ("training", "inference", "others", "free")
    }
    assert by_use["training"] == 1
    assert sum(value or 0 for value in by_use.values()) == 2
    assert scrape.get_sample_value("sluice_lent_gpus", {"pool": "default"}) == 1


def test_training_metrics_are_those_that_were_reported() -> None:
    scrape = shown(whole(), training={"job-uid": REPORT})
    assert scrape.get_sample_value("sluice_training_loss_nats", PLACE) == 1.5
    assert scrape.get_sample_value("sluice_training_step", PLACE) == 3
    assert scrape.get_sample_value("sluice_training_gpu_memory_bytes", PLACE) is None


@pytest.mark.parametrize(("ago", "expected"), [(timedelta(minutes=9), 1.5), (timedelta(minutes=11), None)])
def test_training_metrics_of_a_finished_job_stay_for_a_while(ago: timedelta, expected: float | None) -> None:
    finished = job(status={"finishedAt": (clock() - ago).isoformat()})
    scrape = shown(store(finished), training={"job-uid": REPORT})
    assert scrape.get_sample_value("sluice_training_loss_nats", PLACE) == expected


def test_metrics_of_a_deleted_job_are_gone() -> None:
    world = whole()
    scrape = shown(world, training={"job-uid": REPORT})
    world.remove(job_key("team", "tone"), "job-uid")
    assert scrape.get_sample_value("sluice_training_loss_nats", PLACE) is None
    assert scrape.get_sample_value("sluice_jobs", {"job_namespace": "team", "state": "Pending"}) is None


def test_standby_exposes_sluice_leader_only() -> None:
    scrape = shown(whole(), leads=False, training={"job-uid": REPORT})
    assert [family.name for family in scrape.collect()] == ["sluice_leader"]
    assert scrape.get_sample_value("sluice_leader") == 0


def test_failing_objects_are_counted_by_kind() -> None:
    scrape = shown(
        whole(), work=Work(failed=(job_key("team", "tone"), job_key("team", "x"), engine_key("team", "chat")))
    )
    counts = {kind: scrape.get_sample_value("sluice_failing_objects", {"kind": kind}) for kind in KINDS}
    assert counts == {"FineTuneJob": 2, "InferenceEngine": 1, "GPUPool": None}


def test_unreadable_objects_are_counted_by_kind() -> None:
    world = whole(parse("FineTuneJob", {"metadata": {"name": "x", "namespace": "team", "resourceVersion": "9"}}))
    assert shown(world).get_sample_value("sluice_unreadable_objects", {"kind": "FineTuneJob"}) == 1


def test_pool_undecided_seconds_is_the_wait_for_a_decision() -> None:
    pool = parse("GPUPool", {"metadata": {"name": "a100", "uid": "p", "resourceVersion": "1"}, "spec": {}})
    waits = {pool_key("default"): 61.5, job_key("team", "tone"): 99.0}
    scrape = shown(whole(pool), work=Work(asked=waits))
    seconds = {name: scrape.get_sample_value("sluice_pool_undecided_seconds", {"pool": name}) for name in POOLS}
    assert seconds == {"default": 61.5, "a100": 0, "tone": None}


@pytest.mark.parametrize(
    ("title", "trainer", "lent_to", "idle"),
    [
        ("its trainer runs", {"running": True}, "team/tone", 0),
        ("its trainer does not start", {}, "team/tone", 1),
        ("its trainer does not end", {"running": True, "deleting": True}, "team/tone", 1),
        ("its trainer has ended", {"running": True, "ended": True}, "team/tone", 1),
        ("the job is gone", {"running": True}, "team/gone", 1),
    ],
)
def test_idle_loans_are_those_on_which_nothing_trains(
    title: str, trainer: dict[str, bool], lent_to: str, idle: int
) -> None:
    slots = [{"index": 0, "state": "Lent", "lentTo": lent_to}, {"index": 1, "state": "Serving"}]
    scrape = shown(store(job(), STAGE_JOB, replace(TRAINER, **trainer), engine(status={"slots": slots})))  # type: ignore[arg-type]
    place = {"engine_namespace": "team", "engine_name": "chat"}
    assert scrape.get_sample_value("sluice_idle_loans", place) == idle, title


def test_longest_wait_of_a_namespace_is_that_of_one_job() -> None:
    """However many come and go beside it. Seen elsewhere: kueue#10124."""

    def waits(name: str, uid: str, seconds: int, summary: str = "WaitingForGPUs") -> FineTuneJob:
        since = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
        return job(name, uid, status={"summary": summary, "queue": {"position": "1", "since": since}})

    scrape = shown(store(waits("a", "1", 60), waits("b", "2", 7300), waits("c", "3", 9000, "QuotaExceeded")))
    place = {"job_namespace": "team"}
    assert scrape.get_sample_value("sluice_longest_wait_seconds", place) == pytest.approx(7300, abs=5)
    none = shown(store(job(status={"summary": "Training"})))
    assert none.get_sample_value("sluice_longest_wait_seconds", place) is None


def test_an_engine_that_lends_nothing_has_no_idle_loans() -> None:
    scrape = shown(store(engine(status={"slots": [{"index": 0, "state": "Waiting"}]})))
    assert [len(family.samples) for family in scrape.collect() if family.name == "sluice_idle_loans"] == [0]


async def test_livez_readyz_and_metrics_are_served() -> None:
    port, wrong = free_port(), ["the store is not primed"]
    collector = WorldCollector(whole(), lambda: True, dict, Work())
    async with exposition.serve(port, collector, lambda: "", lambda: wrong[0]), ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/livez") as answer:
            assert (answer.status, await answer.text()) == (200, "ok")
        async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
            assert (answer.status, await answer.text()) == (503, "the store is not primed")
        wrong[0] = ""
        async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
            assert answer.status == 200
        async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            page = await answer.text()
    assert "sluice_leader 1.0" in page
    assert "# TYPE sluice_reconcile_seconds histogram" in page


async def test_metrics_connection_without_tls_handshake_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(connections, "HANDSHAKE_SECONDS", 0.2)
    tls = context_of(renewed(None, ("127.0.0.1",), datetime.now(UTC)), tmp_path)
    port, collector = free_port(), WorldCollector(whole(), lambda: True, dict, Work())
    async with exposition.serve(port, collector, str, str, tls=tls):
        reader, _ = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(1), 10) == b""


async def test_metrics_connection_without_a_whole_request_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LOOK_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(connections, "LONGEST_SECONDS", 0.2)
    port, collector = free_port(), WorldCollector(whole(), lambda: True, dict, Work())
    async with exposition.serve(port, collector, str, str):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
        with contextlib.suppress(ConnectionResetError):  # it is aborted
            assert await asyncio.wait_for(reader.read(1), 10) == b""
