"""Prepare that is killed, or runs twice at once, or meets a store that lists what was: rows are whole, or not there."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sluice_api.artifacts import MANIFEST
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_files.objects import ObjectFile, ObjectFolder
from sluice_trainer import prepared
from sluice_trainer.errors import StageError
from sluice_trainer.work import work_of
from tests.unit.trainer.forked import Parent
from tests.unit.trainer.jobs import Job
from tests.unit.trainer.stored import copies_of, work_in


def load(job: Job) -> prepared.Prepared:
    """The rows as a new pod finds them."""
    stage = job.stage("Train", attempt=9)
    os.environ["SLUICE_WORK"] = str(job.volumes / "scratch-of-train")
    shutil.rmtree(job.volumes / "scratch-of-train", ignore_errors=True)
    work = work_of(stage)
    return prepared.load(work.fetch(work.folder / "prepared"), stage)


def files_left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def expected(job: Job) -> prepared.PreparedManifest:
    """Of a Prepare that nobody disturbed."""
    other = replace(job, name="other")
    other.prepare()
    return other.prepared().manifest


def same_rows(found: prepared.Prepared, expected: prepared.PreparedManifest) -> bool:
    names = [name for name in expected.files if name.endswith(".npy")]
    return {name: found.manifest.files[name] for name in names} == {name: expected.files[name] for name in names}


KILLS = (
    "volume folder-made:1", "volume folder-written:1", "volume folder-synced:1", "volume folder-renamed:1",
    "store folder-made:1", "store folder-written:1", "store file-uploaded:1", "store folder-synced:1",
    "store folder-renamed:1",
)  # fmt: skip


@pytest.mark.parametrize("kill", KILLS)
def test_prepare_that_is_killed_leaves_whole_rows_or_none(
    job: Job, parent: Parent, expected: prepared.PreparedManifest, kill: str, request: pytest.FixtureRequest
) -> None:
    where, place = kill.split()
    job = request.getfixturevalue("stored_job") if where == "store" else job
    assert parent.start(job, "Prepare", f"{place}:SIGKILL").wait() == -signal.SIGKILL
    if place == "folder-renamed:1":  # from here on they count
        assert same_rows(load(job), expected)
    else:
        with pytest.raises(StageError, match=r"manifest\.json is missing or damaged. Let Prepare make them anew"):
            load(job)

    assert parent.start(job, "Prepare").wait() == ExitCode.DONE
    assert same_rows(load(job), expected)
    if where == "store":
        bucket: Path = request.getfixturevalue("bucket")
        (copy,) = copies_of(bucket, "prepared")
        assert files_left(work_in(bucket)) == files_left_of(copy, bucket)
    else:
        assert [path.name for path in job.work.iterdir()] == ["prepared"]


def files_left_of(copy: Path, bucket: Path) -> list[str]:
    return [str((copy / name).relative_to(work_in(bucket))) for name in files_left(copy)]


@pytest.mark.parametrize(
    "halt",
    ["volume folder-made:1", "volume folder-written:1", "volume folder-synced:1", "store file-uploaded:1",
     "store folder-synced:1"],
)  # fmt: skip
def test_prepare_that_is_believed_dead_and_goes_on_changes_no_row(
    job: Job, parent: Parent, expected: prepared.PreparedManifest, halt: str, request: pytest.FixtureRequest
) -> None:
    """As a pod on a node that was cut off: a second attempt has made the rows meanwhile."""
    where, place = halt.split()
    job = request.getfixturevalue("stored_job") if where == "store" else job
    first = parent.start(job, "Prepare", f"{place}:SIGSTOP")
    assert first.wait() == -signal.SIGSTOP
    assert parent.start(job, "Prepare").wait() == ExitCode.DONE
    assert same_rows(load(job), expected)
    first.send(signal.SIGCONT)
    first.wait()
    assert same_rows(load(job), expected)
    if where == "store":
        work = work_of(job.stage("Train", attempt=9))
        bucket: Path = request.getfixturevalue("bucket")
        second = max(int(copy.name.split("-")[1]) for copy in copies_of(bucket, "prepared"))
        assert f"/prepared/attempt-{second}-" in work.address(work.folder / "prepared")


def frozen(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A store whose listing stays as it is now; returns what lets it catch up."""
    names: Any = ObjectFolder.names
    seen: dict[str, list[ObjectFile]] = {}

    def stale(objects: ObjectFolder, prefix: str = "") -> list[ObjectFile]:
        found: list[ObjectFile] = seen.get(prefix, [])
        return found

    def look(objects: ObjectFolder, prefix: str = "") -> list[ObjectFile]:
        found: list[ObjectFile] = seen.setdefault(prefix, names(objects, prefix))
        return found

    monkeypatch.setattr(ObjectFolder, "names", look)

    def freeze() -> None:
        monkeypatch.setattr(ObjectFolder, "names", stale)

    return freeze


def test_rows_that_a_store_does_not_list_yet_are_looked_for_again(
    stored_job: Job, monkeypatch: pytest.MonkeyPatch, expected: prepared.PreparedManifest
) -> None:
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(ObjectFolder, "names", lambda *_: [])
        stored_job.prepare()
        with pytest.raises(StageError, match="missing or damaged") as raised:
            load(stored_job)
        assert (raised.value.reason, raised.value.code) == (Reason.TRAINER_FAILED, ExitCode.INTERNAL), "tried again"
    assert same_rows(load(stored_job), expected)


@pytest.mark.parametrize("gone", [MANIFEST, "input_ids.npy", "*"])
def test_rows_that_a_store_still_lists_and_has_no_more_are_none(
    stored_job: Job, bucket: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    stored_job.prepare()
    freeze = frozen(monkeypatch)
    load(stored_job)
    freeze()
    (copy,) = copies_of(bucket, "prepared")
    for file in copy.glob(gone):
        file.unlink()
    with pytest.raises(StageError, match="missing or damaged"):
        load(stored_job)


def test_setting_without_effect_sends_no_row_again(stored_job: Job, bucket: Path) -> None:
    first = stored_job.prepare()
    (copy,) = copies_of(bucket, "prepared")
    written = {file.name: file.stat().st_mtime_ns for file in copy.iterdir()}
    other = replace(stored_job, training=(("keepCheckpoints", 5),))
    assert other.prepare() == first
    assert copies_of(bucket, "prepared") == [copy]
    assert {file.name: file.stat().st_mtime_ns for file in copy.iterdir()} == written
    assert load(other).manifest == load(stored_job).manifest
