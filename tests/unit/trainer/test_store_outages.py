"""A job's output in an object store that refuses, is full, is away or hangs, against a real S3 server."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from sluice_api.pods import DISK_ENV
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_files import stores
from sluice_trainer import failpoints, store_requests
from sluice_trainer.errors import PeerLost, StageError
from tests.object_store import SECRET, ObjectStore, object_store, write_secret
from tests.unit.trainer.gate import Gate, gate
from tests.unit.trainer.jobs import Job
from tests.unit.trainer.stored import attempt, resumed, state


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only our own patience is tried, not that of the store's library."""
    monkeypatch.setitem(stores._RETRIES, "max_retries", 0)
    monkeypatch.setattr(store_requests, "_FIRST_PAUSE_SECONDS", 0.05)


@pytest.fixture
def way(stored_job: Job, s3: ObjectStore, impatient: None) -> Iterator[Gate]:
    """The way to the store, which can be closed."""
    with gate(s3.endpoint) as found:
        (stored_job.volumes / "credentials" / "store" / "AWS_ENDPOINT_URL").unlink()
        (stored_job.volumes / "credentials" / "store" / "AWS_ENDPOINT_URL").write_text(found.endpoint)
        yield found


def test_token_that_is_renewed_in_the_secret_is_used(stored_job: Job, s3: ObjectStore, impatient: None) -> None:
    """Temporary credentials end after hours. The kubelet changes the files of a Secret under a running pod."""
    checkpoints = attempt(stored_job, 1)
    secret = stored_job.volumes / "credentials" / "store" / "AWS_SECRET_ACCESS_KEY"
    secret.unlink()
    secret.write_text("this one is over")
    over = attempt(stored_job, 1)
    with pytest.raises(StageError, match=r"output\.uri s3://.*Correct the Secret store"):
        over.save(partial(state, 4))
    secret.write_text(SECRET)
    assert over.save(partial(state, 4)) == checkpoints.newest_step() == 4


def test_store_that_is_away_for_a_while_does_not_end_training(
    stored_job: Job, way: Gate, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job = replace(stored_job, training=(("epochs", 1), ("checkpointEverySteps", 1)))
    job.prepare()
    reached = failpoints.reached

    def closes(place: failpoints.Place) -> None:
        reached(place)
        if place == "tensors-written" and not way.refused.is_set():
            way.close()
            threading.Timer(0.5, way.open).start()

    monkeypatch.setattr(failpoints, "reached", closes)
    result = job.train()
    assert way.refused.is_set()
    assert (result.step, result.checkpoint_step) == (5, 5)
    assert '"event": "the store can\'t be reached"' in capfd.readouterr().out


def test_store_that_stays_away_costs_the_checkpoints_since(
    stored_job: Job, way: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is told to stop says what is not durable, before it is killed."""
    monkeypatch.setattr(store_requests, "PATIENCE_SECONDS", 0.2)
    checkpoints = attempt(stored_job, 1)
    checkpoints.save(partial(state, 4))
    way.close()
    assert checkpoints.save_in_background(partial(state, 8))
    assert checkpoints._background is not None
    checkpoints._background.join(10)
    assert checkpoints.durable_step == 4
    with pytest.raises(StageError) as raised:
        checkpoints.save(partial(state, 12))
    assert (raised.value.reason, raised.value.code) == (Reason.OUTPUT_UNREACHABLE, ExitCode.INTERNAL)
    assert raised.value.message.startswith("Step 12 could not be saved; step 4 is durable. output.uri s3://")
    way.open()
    assert checkpoints.save_in_background(partial(state, 16))
    checkpoints._background.join(10)
    assert resumed(stored_job, 2) == (16, 0.0)


@pytest.mark.parametrize("opens", [True, False])
def test_upload_that_hangs_is_given_up_for_the_last_step(stored_job: Job, way: Gate, opens: bool) -> None:
    """A store that answers nothing must not cost the step that the process is at, nor keep it beyond its grace."""
    checkpoints = attempt(stored_job, 1)
    checkpoints.save(partial(state, 4))
    way.close(hangs=True)
    assert checkpoints.save_in_background(partial(state, 8))
    assert way.refused.wait(10)
    if opens:
        threading.Timer(0.3, way.open).start()
    checkpoints.work.end_soon(10 if opens else 0.3, give_up=True)
    if opens:
        assert checkpoints.save(partial(state, 12)) == 12
    else:
        with pytest.raises(StageError, match=r"Step 12 could not be saved; step 4 is durable\. .* has not taken it in"):
            checkpoints.save(partial(state, 12))
    way.open()
    assert checkpoints._background is not None
    checkpoints._background.join(10)
    assert resumed(stored_job, 2) == ((12, 0.0) if opens else (4, 0.0))


def wrong_key(job: Job) -> Job:
    write_secret(job.volumes / "credentials", "wrong", {"AWS_ACCESS_KEY_ID": "NOBODY", **_of(job, "AWS_SECRET")})
    return with_output(job, secret="wrong")


def wrong_secret(job: Job) -> Job:
    values = {**_of(job, "AWS_ACCESS"), "AWS_SECRET_ACCESS_KEY": "wrong-and-long-enough"}
    write_secret(job.volumes / "credentials", "wrong", values)
    return with_output(job, secret="wrong")


def half_a_secret(job: Job) -> Job:
    write_secret(job.volumes / "credentials", "wrong", _of(job, "AWS_ACCESS"))
    return with_output(job, secret="wrong")


def _of(job: Job, key: str) -> dict[str, str]:
    """Some keys of the right Secret."""
    folder = job.volumes / "credentials" / "store"
    keys = (path for path in folder.iterdir() if path.name.startswith((key, "AWS_REGION", "AWS_ENDPOINT")))
    return {path.name: path.read_text() for path in keys}


def with_output(job: Job, **changes: str) -> Job:
    output = dict(job.spec)["output"]
    secret = changes.pop("secret", "store")
    return replace(job, spec=(("output", {**output, "credentials": {"secret": secret}, **changes}),))


def unreachable(job: Job) -> Job:
    values = {**_of(job, "AWS"), "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    write_secret(job.volumes / "credentials", "wrong", values)
    return with_output(job, secret="wrong")


@pytest.mark.parametrize(
    ("wrong", "reason", "code", "message"),
    [
        (wrong_key, Reason.ACCESS_REFUSED, 65, r"output\.uri s3://.*not know the AWS_ACCESS_KEY_ID.*Secret wrong"),
        (wrong_secret, Reason.ACCESS_REFUSED, 65, r"output\.uri s3://.*credentials are wrong.*Secret wrong"),
        (half_a_secret, Reason.ACCESS_REFUSED, 65, r"output\.uri s3://.*without AWS_SECRET_ACCESS_KEY\. Add it"),
        (partial(with_output, secret="none"), Reason.ACCESS_REFUSED, 65, r"output\.uri s3://.*Secret none is not in"),
        (partial(with_output, uri="s3://nobodys-bucket/x"), Reason.OUTPUT_NOT_WRITABLE, 65, r"output\.uri s3://.*s3://nob"),
        (unreachable, Reason.OUTPUT_UNREACHABLE, 70, r"output\.uri s3://.*1:1 can't be reached .*: nobody listens"),
    ],
    ids=["key", "secret", "half", "none", "bucket", "unreachable"],
)  # fmt: skip
def test_output_in_a_store_that_can_not_be_written_is_found_by_prepare(
    stored_job: Job, impatient: None, wrong: Callable[[Job], Job], reason: Reason, code: int, message: str
) -> None:
    with pytest.raises(StageError, match=message) as raised:
        wrong(stored_job).prepare()
    assert (raised.value.reason, raised.value.code) == (reason, code)


def test_bucket_that_may_only_be_read_is_found_by_prepare(stored_job: Job, tmp_path: Path) -> None:
    """By a file that is written and removed: whether one may write is not to be seen otherwise."""
    with object_store(tmp_path / "read-only", more=["--readonly"]) as store:
        store.bucket("books")
        write_secret(stored_job.volumes / "credentials", "reader", store.secret)
        message = r"output\.uri s3://.* refuses it to the credentials of the Secret reader .*right to write and delete"
        with pytest.raises(StageError, match=message) as raised:
            with_output(stored_job, secret="reader", uri="s3://books/x").prepare()
    assert (raised.value.reason, raised.value.code) == (Reason.ACCESS_REFUSED, ExitCode.BAD_INPUT)


def test_disk_that_will_not_hold_a_checkpoint_is_found_by_prepare(
    stored_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice_trainer.train.trials.memory.COPY_BYTES_PER_WEIGHT", 20_000)
    full = (("method", "Full"), ("resources", {"ephemeralStorage": "1Gi"}))
    message = r"resources\.ephemeralStorage 1Gi does not hold .*: that takes 2\.08Gi\. Raise it"
    with pytest.raises(StageError, match=message) as raised:
        replace(stored_job, spec=(*stored_job.spec, *full)).prepare()
    assert (raised.value.reason, raised.value.code) == (Reason.OUTPUT_NOT_WRITABLE, ExitCode.BAD_INPUT)


def test_disk_without_room_for_a_checkpoint_says_what_to_raise(
    stored_job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(DISK_ENV, "255")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        StageError, match=r"room for 255 bytes, and 256 are needed: .*resources\.ephemeralStorage"
    ) as it:
        attempt(stored_job, 1).save(partial(state, 4))
    assert it.value.reason is Reason.OUTPUT_NOT_WRITABLE


def test_save_that_is_given_up_is_no_failed_save(stored_job: Job, way: Gate) -> None:
    checkpoints = attempt(stored_job, 1)
    way.close(hangs=True)
    threading.Timer(0.2, lambda: checkpoints.work.end_soon(5, give_up=True)).start()
    with pytest.raises(PeerLost):
        checkpoints.save(partial(state, 8))
