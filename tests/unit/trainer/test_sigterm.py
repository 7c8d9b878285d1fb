"""SIGTERM at any place: durable, never a false success, and the next attempt has the same bits.

The process is halted at the place, gets the signal, and goes on. `make test` tries a few places, `make soak` all;
some by their ids:

    SLUICE_SIGTERMS=Train:forward:13,Export:folder-synced:1 python3 -m pytest tests/unit/trainer/test_sigterm.py
"""

import os
import signal
from dataclasses import replace

import pytest

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from tests.unit.trainer.forked import TRAINING, Parent, StageProcess, WholeJob, run_to_the_end
from tests.unit.trainer.jobs import Job

NOTHING_TO_SAVE = (
    "Prepare:stage-begins:1",
    "Prepare:folder-made:1",
    "Prepare:folder-synced:1",
    "Train:stage-begins:1",
    "Train:model-loads:1",
    "Train:model-loaded:1",
    "Train:evaluates:1",
    "Export:stage-begins:1",
    "Export:model-loads:1",
    "Export:adapter-written:1",
    "Export:adapter-checked:1",
    "Export:folder-synced:1",
)
SAVED = (
    "Train:forward:1",
    "Train:forward:13",
    "Train:backward:14",
    "Train:update-begins:7",
    "Train:update-half-done:7",
    "Train:update-done:7",
    "Train:state-copied:2",
    "Train:folder-made:2",
    "Train:tensors-written:1",
    "Train:progress-written:2",
    "Train:folder-written:2",
    "Train:folder-synced:2",
    "Train:folder-renamed:2",
    "Train:folder-durable:2",
    "Train:checkpoint-pruned:1",
    "Train:evaluates:2",
    "Train:training-completes:1",
    "Train:file-written:1",
)
ALL_DONE = ("Train:file-renamed:1", "Export:folder-renamed:1", "Export:folder-durable:1")
"""The stage is complete here: that it is told to stop may come too late."""
FEW = ("Train:backward:14", "Train:update-half-done:7", "Train:tensors-written:1", "Export:adapter-written:1")
OF_A_STORE = "S3:"
"""What the ids of places begin with where the output is in an object store."""
FEW_OF_A_STORE = ("S3:Train:file-uploaded:2",)

FULL_DISK = """
from safetensors import SafetensorError
from sluice_trainer.train.checkpoints import checkpoint

whole, left = checkpoint.save_file, iter(range(1))

def save_file(tensors, path):
    if next(left, None) is None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    whole(tensors, path)

checkpoint.save_file = save_file
"""
"""All saves but the first fail, as on a real one."""


def selected_places(choice: str) -> tuple[str, ...]:
    """All places, those of these ids, or a few."""
    on_a_volume = (*NOTHING_TO_SAVE, *SAVED, *ALL_DONE)
    in_a_store = (
        f"{OF_A_STORE}{place}" for place in (*on_a_volume, *(f"Train:file-uploaded:{n}" for n in range(1, 9)))
    )
    everywhere = (*on_a_volume, *in_a_store)
    return {"": (*FEW, *FEW_OF_A_STORE), "all": everywhere}.get(choice) or tuple(choice.split(","))


def stop_with_sigterm(halted: StageProcess) -> int:
    """Send SIGTERM to a halted process, and once more while it ends; returns the exit code."""
    assert halted.wait() == -signal.SIGSTOP
    halted.send(signal.SIGTERM)
    halted.send(signal.SIGCONT, signal.SIGTERM)
    return halted.wait()


@pytest.mark.parametrize("place", selected_places(os.environ.get("SLUICE_SIGTERMS", "")))
def test_sigterm_costs_no_bit(
    job: Job, parent: Parent, undisturbed: WholeJob, place: str, request: pytest.FixtureRequest
) -> None:
    if place.startswith(OF_A_STORE):
        job = request.getfixturevalue("stored_job")
    job = replace(job, training=TRAINING)
    place = place.removeprefix(OF_A_STORE)
    stage, failpoint = place.split(":", 1)
    before = parent.before(job, stage)
    stopped = parent.start(job, stage, f"{failpoint}:SIGSTOP")
    code = stop_with_sigterm(stopped)

    outcome = stopped.outcome
    if not (code == ExitCode.DONE and outcome.reason == Reason.DONE and place in ALL_DONE):
        assert (code, outcome.reason) == (ExitCode.REQUEUE, Reason.REQUEUED)
        assert (outcome.train is None) == (place in NOTHING_TO_SAVE or stage == "Export")
        if outcome.train is None:
            assert outcome.message == "Told to stop; there was nothing to save yet."
    durable = outcome.train.checkpoint_step if outcome.train else None
    assert durable is None or durable == max((event["step"] for event in stopped.events("step")), default=0)

    whole = run_to_the_end(parent, job, *before, stopped)
    after = whole.runs[len(before) + 1]
    assert [event["resumed_from"] for event in after.events("begin")] in ([durable], [])
    assert whole.losses == undisturbed.losses
    assert whole.digest == undisturbed.digest


def test_sigterm_before_the_first_line_is_kept_until_it_can_be_handled(job: Job) -> None:
    with job.start("Prepare") as process:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == ExitCode.REQUEUE
        finally:
            process.kill()
    assert job.outcome().message == "Told to stop; there was nothing to save yet."


def test_sigterm_on_a_full_disk_is_no_requeue(job: Job, parent: Parent, undisturbed: WholeJob) -> None:
    job = Job(job.volumes, training=TRAINING)
    before = parent.before(job, "Train")
    stopped = parent.start(job, "Train", "forward:21:SIGSTOP", FULL_DISK)
    assert stop_with_sigterm(stopped) == ExitCode.INTERNAL
    assert stopped.outcome.reason == Reason.OUTPUT_NOT_WRITABLE
    step = max(event["step"] for event in stopped.events("step"))
    assert stopped.outcome.message.startswith(f"Step {step} could not be saved; step 4 is durable. output.uri pvc://")
    assert "No space left on device" in stopped.outcome.message

    whole = run_to_the_end(parent, job, *before, stopped)
    assert whole.runs[2].events("begin")[0]["resumed_from"] == 4
    assert (whole.losses, whole.digest) == (undisturbed.losses, undisturbed.digest)
