"""Which disk is full: that of the output, or the pod's own. Each has a remedy of its own."""

import errno
from pathlib import Path
from typing import IO, Any

import pytest

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_trainer.errors import StageError
from sluice_trainer.token_rows import RowWriter
from tests.unit.trainer.jobs import Job


@pytest.mark.parametrize("buffering", [0, -1], ids=["at once", "when it is flushed"])
def test_full_disk_of_the_pod_is_not_said_of_the_output(
    job: Job, buffering: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> IO[Any]:
        return Path("/dev/full").open("r+b", buffering=buffering)

    monkeypatch.setattr("sluice_trainer.data.collect.TemporaryFile", full)
    with pytest.raises(StageError) as raised:
        job.prepare()
    assert "this pod's disk, " in raised.value.message
    assert "Raise resources.ephemeralStorage, or make room on the node." in raised.value.message
    assert "output.uri" not in raised.value.message
    assert (raised.value.reason, raised.value.code) == (Reason.TRAINER_FAILED, ExitCode.INTERNAL)
    assert not (job.work / "prepared").exists()


def test_full_volume_is_said_of_the_output(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RowWriter, "append", full)
    with pytest.raises(StageError, match=r"output\.uri pvc://adapters/out/.*Make room in the claim") as raised:
        job.prepare()
    assert (raised.value.reason, raised.value.code) == (Reason.OUTPUT_NOT_WRITABLE, ExitCode.INTERNAL)
