"""A job's output in an object store, against a real S3 server: whole or absent, whoever else writes there."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._C._distributed_c10d import HashStore

from sluice_api.artifacts import ADAPTER_FILES, file_digest
from sluice_api.stages import TrainResult
from sluice_trainer import failpoints
from sluice_trainer.errors import StageError
from sluice_trainer.ranks import Rank
from sluice_trainer.train.checkpoints.checkpoint import Checkpoints
from sluice_trainer.train.checkpoints.sharded import ShardedSaver
from sluice_trainer.train.checkpoints.tensor_files import Shard
from sluice_trainer.work import work_of
from sluice_trainer.work_in_store import _files_of
from tests.object_store import SECRET, ObjectStore
from tests.unit.trainer.jobs import Job
from tests.unit.trainer.stored import attempt, copies_of, resumed, state, work_in


def objects(bucket: Path) -> list[str]:
    """Names of all objects, without what tells an attempt's copies apart."""
    return sorted(str(path.relative_to(bucket)) for path in bucket.rglob("*") if path.is_file())


def steps_kept(bucket: Path) -> set[int]:
    """Steps of the checkpoints of a job whose manifests are there."""
    found = (work_in(bucket) / "checkpoints").glob("step-*")
    return {int(path.name.removeprefix("step-")) for path in found if any(path.rglob("*.json"))}


def test_job_with_its_output_in_a_store_has_the_bytes_of_one_on_a_volume(
    job: Job, stored_job: Job, bucket: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    training = (("epochs", 1), ("checkpointEverySteps", 1), ("keepCheckpoints", 2))
    on_volume, in_store = (replace(each, training=training) for each in (job, stored_job))
    found = [(each.prepare(), each.train(), each.export()) for each in (on_volume, in_store)]
    assert found[0] == found[1]
    (export,) = copies_of(bucket, "export")
    assert b"".join((export / name).read_bytes() for name in ADAPTER_FILES) == on_volume.adapter
    assert [len(copies_of(bucket, name)) for name in ("prepared", "checkpoints", "export")] == [1, 1, 1]
    # One that is due while the one before it is still being uploaded is left out, so the other may be of any step.
    assert (len(kept := steps_kept(bucket)), max(kept)) == (2, 5)
    left_here = [path.name for path in (in_store.volumes / "scratch").rglob("*.safetensors")]
    assert left_here == ["state.safetensors"]
    assert in_store.prepare() == found[1][0]
    assert in_store.train() == found[1][1]
    assert in_store.export() == found[1][2]
    assert len(copies_of(bucket, "export")) == 1, "what is there is not made again"
    assert SECRET not in capfd.readouterr().out


def test_resume_reads_the_step_that_is_meant_and_none_that_begins_like_it(stored_job: Job, s3: ObjectStore) -> None:
    """Also from a bucket and a path with characters that lists and URLs treat specially."""
    bucket = s3.bucket("dots.and-dashes.12")
    output = {"uri": f"s3://{bucket.name}/a=1/b+c@d:e,f", "credentials": {"secret": "store"}}
    job = replace(stored_job, spec=(("output", output),), training=(("keepCheckpoints", 9),))
    for name in ("job", "job-1"):
        writer = attempt(replace(job, name=name), 1)
        for step in (1, 12, 120):
            writer.save(partial(state, step, 0.25 if name == "job" else 0.75))
    reader = attempt(job, 2)
    assert [reader.read(step).tensors["weight.a"][0].item() - step for step in (1, 12, 120)] == [0.25] * 3


def no_manifest(copy: Path) -> None:
    (copy / "manifest.json").unlink()


def one_file_less(copy: Path) -> None:
    (copy / "state.safetensors").unlink()


def flipped(copy: Path) -> None:
    content = bytearray((copy / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "state.safetensors").write_bytes(content)


def truncated(copy: Path) -> None:
    """As a store that has lost a part of a file."""
    os.truncate(copy / "state.safetensors", (copy / "state.safetensors").stat().st_size // 2)


def torn_manifest(copy: Path) -> None:
    os.truncate(copy / "manifest.json", 50)


def climbs(copy: Path) -> None:
    """Somebody else who may write to the bucket has written it."""
    fields = json.loads((copy / "manifest.json").read_text())
    fields.pop("sha256")
    fields["files"]["../../../credentials/store/AWS_REGION"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(fields))


def of_another_plan(copy: Path) -> None:
    fields = json.loads((copy / "manifest.json").read_text())
    fields.pop("sha256")
    (copy / "manifest.json").write_text(json.dumps({**fields, "plan": "another"}))


@pytest.mark.parametrize(
    "damage", [no_manifest, one_file_less, flipped, truncated, torn_manifest, climbs, of_another_plan]
)
def test_checkpoint_in_a_store_that_is_not_whole_is_never_taken(
    stored_job: Job, bucket: Path, damage: Callable[[Path], None]
) -> None:
    writer = attempt(stored_job, 1)
    for step in (4, 8):
        writer.save(partial(state, step))
    (copy,) = copies_of(bucket, "checkpoints/step-8")
    damage(copy)
    assert resumed(stored_job, 2) == (4, 0.0)
    assert (stored_job.volumes / "credentials" / "store" / "AWS_REGION").read_text() == "eu-test-1"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..", "", "manifest.json"])
def test_manifest_that_names_a_file_outside_of_its_folder_is_none(name: str) -> None:
    assert _files_of(json.dumps({"files": {"state.json": "0", "more/x": "1"}}).encode()) == {
        "state.json": "0",
        "more/x": "1",
    }
    assert _files_of(json.dumps({"files": {"state.json": "0", name: "1"}}).encode()) == _files_of(b"torn")


@pytest.mark.parametrize("damage", [flipped, one_file_less])
def test_damaged_copy_of_a_newer_attempt_leaves_that_of_an_older_one(
    stored_job: Job, bucket: Path, damage: Callable[[Path], None]
) -> None:
    for number in (1, 2):
        attempt(stored_job, number).save(partial(state, 8, number / 4))
    damage(copies_of(bucket, "checkpoints/step-8")[1])
    assert resumed(stored_job, 3) == (8, 0.25)


def test_old_attempt_can_not_put_its_bytes_in_the_place_of_a_new_ones(stored_job: Job) -> None:
    old, new = attempt(stored_job, 1), attempt(stored_job, 2)
    new.save(partial(state, 12, 0.5))
    old.save(partial(state, 12, 0.25))
    assert resumed(stored_job, 3) == (12, 0.5)


def test_old_attempt_removes_nothing_of_a_new_one(stored_job: Job) -> None:
    """It is further on than the new one, and has what it wrote removed."""
    old, new = attempt(stored_job, 1), attempt(stored_job, 2)
    old.save(partial(state, 28))
    new.save(partial(state, 16, 0.5))
    assert resumed(stored_job, 3) == (16, 0.5), "the new one did not find step 28 when it began"
    for step in (32, 36, 40):
        old.save(partial(state, step))
    assert {16, 36, 40} <= set(attempt(stored_job, 3)._steps())
    shutil.rmtree(stored_job.volumes / "scratch-3")
    new.save(partial(state, 20, 0.5))
    assert resumed(stored_job, 3) == (20, 0.5)


@pytest.mark.parametrize("first", [1, 2])
def test_training_that_an_old_attempt_completes_too_is_the_new_ones(stored_job: Job, first: int) -> None:
    attempts = {number: attempt(stored_job, number) for number in (1, 2)}
    for number in (first, 3 - first):
        attempts[number].save(partial(state, 100, number / 4))
        attempts[number].complete(TrainResult(step=100, total_steps=100, evaluation_loss_after=number))
    result, trained = attempt(stored_job, 3).trained()
    assert (result.evaluation_loss_after, trained.tensors["weight.a"][0].item()) == (2, 100.5)


def test_old_attempt_that_goes_on_in_the_middle_of_an_upload_leaves_no_half(
    stored_job: Job, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one removes what the old one has not finished, and then that finishes it."""
    old, reached = attempt(stored_job, 1), failpoints.reached
    old.save(partial(state, 4))

    def new_one(place: failpoints.Place) -> None:
        reached(place)
        if place == "folder-synced":
            monkeypatch.setattr(failpoints, "reached", reached)
            new = attempt(stored_job, 2)
            assert new.newest_step() == 4
            new.save(partial(state, 8, 0.5))

    monkeypatch.setattr(failpoints, "reached", new_one)
    old.save(partial(state, 12))
    assert [path.name for path in copies_of(bucket, "checkpoints/step-12")[0].iterdir()] == ["manifest.json"]
    assert resumed(stored_job, 3) == (8, 0.5)


SAVES = st.tuples(st.integers(1, 3), st.sampled_from(["save", "resume"]))


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SAVES, min_size=2, max_size=7))
def test_checkpoint_that_an_attempt_believes_durable_is_there(
    stored_job: Job, s3: ObjectStore, does: list[tuple[int, str]]
) -> None:
    """Three attempts in any order: the newest never loses what it has saved, and there is always one to go on from."""
    bucket = s3.bucket(f"h-{os.urandom(6).hex()}")
    output = {"uri": f"s3://{bucket.name}", "credentials": {"secret": "store"}}
    job = replace(stored_job, spec=(("output", output),), training=(("keepCheckpoints", 1),))
    live: dict[int, Checkpoints] = {}
    steps: dict[int, int] = {}
    for number, what in does:
        if number not in live or what == "resume":
            live[number] = attempt(job, number)
            found = live[number].newest_step()
            steps[number] = 0 if found is None else found
            if found is not None:
                live[number].read(found)
        steps[number] += 4 * (4 - number)  # an older one is faster
        live[number].save(partial(state, steps[number], number / 4))
        newest = max(live)
        reader = attempt(job, 9)
        if (mine := live[newest].durable_step) is not None:
            assert reader._damage(mine) is None
        assert resumed(job, 9) is not None


def test_resume_from_a_job_in_a_store(stored_job: Job, bucket: Path) -> None:
    """With its checkpoints, in Prepare's name: any attempt to train may remove them."""
    training = (("epochs", 1), ("checkpointEverySteps", 1), ("keepCheckpoints", 2))
    older = replace(stored_job, training=training)
    older.prepare()
    expected = older.train()
    source = work_in(bucket)
    shutil.rmtree(source / "checkpoints" / "step-5")
    left = max(int(copy.parent.name.removeprefix("step-")) for copy in source.glob("checkpoints/step-*/attempt-1-*"))
    output: dict[str, Any] = dict(older.spec)["output"]
    resumes = ("resumeFrom", f"s3://{bucket.name}/out/{source.name}")
    for name, uri in (("newer", output["uri"]), ("on-a-volume", "pvc://adapters/out")):
        newer = replace(older, name=name, spec=(("output", {**output, "uri": uri}), resumes))
        newer.prepare()
        assert newer.train() == expected.model_copy(update={"resumed_from": left})
    assert copies_of(bucket, f"checkpoints/step-{left}"), "the older job keeps what it has"
    wrong = replace(older, name="wrong", spec=(("output", output), ("resumeFrom", f"s3://{bucket.name}/out/nobody")))
    with pytest.raises(StageError, match=r"resumeFrom s3://.*/out/nobody: there is no whole prepared/manifest\.json"):
        wrong.prepare()


@pytest.mark.parametrize("unlucky", [None, 0, 1])
def test_shards_of_pods_without_a_common_disk_are_one_checkpoint(
    stored_job: Job, bucket: Path, unlucky: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or none, for all of them, if one can't be uploaded."""
    texts = HashStore()
    works = []
    for number in (0, 1):
        monkeypatch.setenv("SLUICE_WORK", str(stored_job.volumes / f"pod-{number}"))
        works.append(work_of(stored_job.stage("Train")))
    if unlucky is not None:

        def full(*_: object) -> None:
            raise PermissionError(13, "the store says no")

        monkeypatch.setattr(works[unlucky]._objects, "put", full)  # type: ignore[attr-defined]
    savers = [ShardedSaver(Rank(pod, 0, 2, 1), _Clones(texts), work) for pod, work in enumerate(works)]  # type: ignore[arg-type]

    def finish(folder: Path, digests: dict[str, str]) -> None:
        assert sorted(digests) == [Shard(number, 2).file for number in (0, 1)]
        manifest = {"files": digests, "plan": "the plan", "step": 1, "format": "sluice.checkpoint/v2"}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    with ThreadPoolExecutor() as pool:
        folders = [work.folder / "checkpoints" / "step-1" for work in works]
        parts = [{"weight.a": torch.full((2, 2), float(number))} for number in (0, 1)]
        saves = [pool.submit(s.write, f, p, finish) for s, f, p in zip(savers, folders, parts, strict=True)]
    errors = [save.exception(20) for save in saves]
    if unlucky is not None:
        assert all(errors)
        assert not [name for name in objects(bucket) if name.endswith("manifest.json")]
    else:
        assert errors == [None, None]
        (copy,) = copies_of(bucket, "checkpoints/step-1")
        assert sorted(path.name for path in copy.iterdir()) == ["manifest.json", *(Shard(n, 2).file for n in (0, 1))]
        fetched = works[1].fetch(folders[1])
        digests = json.loads((copy / "manifest.json").read_text())["files"]
        assert {name: file_digest(fetched / name) for name in digests} == digests
        works[1].forget(fetched)
    assert not [path for path in stored_job.volumes.glob("pod-*/**/*") if path.suffix == ".safetensors"]


class _Clones:
    """A group's store in one process."""

    def __init__(self, store: HashStore) -> None:
        self._store = store

    def clone(self) -> HashStore:
        return self._store
