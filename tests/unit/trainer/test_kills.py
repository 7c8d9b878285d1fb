"""SIGKILL at any place: the losses as logged, and the adapter, have the bits of a run that nobody disturbed.

`make test` tries a few places, `make soak` all. Some by their ids, or so many:

    SLUICE_KILLS=Train:tensors-written:2,Export:adapter-checked:1 python3 -m pytest tests/unit/trainer/test_kills.py
"""

import os
import random
import signal
from dataclasses import replace

import pytest

from tests.unit.trainer.forked import TRAINING, Parent, WholeJob, run_to_the_end
from tests.unit.trainer.jobs import Job

SEED = 9
INSIDE_A_SAVE = {
    "state-copied": 3,
    "folder-made": 4,
    "tensors-written": 4,
    "progress-written": 4,
    "folder-written": 4,
    "folder-synced": 4,
    "folder-renamed": 4,
    "folder-durable": 4,
    "checkpoint-pruned": 2,
}
ELSEWHERE = {
    "stage-begins": 1,
    "model-loads": 1,
    "model-loaded": 1,
    "evaluates": 2,
    "forward": 27,
    "backward": 27,
    "update-begins": 15,
    "update-half-done": 15,
    "update-done": 15,
    "training-completes": 1,
    "file-written": 1,
    "file-renamed": 1,
}
"""How often the Train stage of an undisturbed run comes by."""
EXPORTING = ("adapter-written", "adapter-checked", "folder-synced", "folder-renamed")
FEW = 5


IN_STORE = {"file-uploaded": 8, "folder-synced": 5, "folder-renamed": 5, "checkpoint-pruned": 2}
"""The same of what is other where the output is in an object store, with the end of training."""
OF_A_STORE = "S3:"
"""What the ids of those begin with."""
FEW_OF_A_STORE = ("S3:Train:file-uploaded:5", "S3:Train:folder-renamed:3")


def all_kills() -> list[str]:
    """Each place once, at a seeded moment, and a few again; each place of an output in an object store."""
    in_store = (*(f"{OF_A_STORE}{kill}" for kill in kills_of_a_volume()), *kills_of_a_store())
    return [*kills_of_a_volume(), *dict.fromkeys(in_store)]


def kills_of_a_store() -> list[str]:
    """Every time that training comes by one of those places."""
    train = [f"{OF_A_STORE}Train:{place}:{nth}" for place, often in IN_STORE.items() for nth in range(1, often + 1)]
    return [*train, f"{OF_A_STORE}Prepare:file-uploaded:1", f"{OF_A_STORE}Prepare:folder-synced:1"]


def kills_of_a_volume() -> list[str]:
    """Thirty, ten of them inside a save."""
    draw = random.Random(SEED)
    inside = [*INSIDE_A_SAVE, "tensors-written"]
    elsewhere = [*ELSEWHERE, *draw.sample(("forward", "backward", "update-half-done", "update-done"), 4)]
    often = INSIDE_A_SAVE | ELSEWHERE
    train = [f"Train:{place}:{draw.randint(1, often[place])}" for place in (*inside, *elsewhere)]
    return [*train, *(f"Export:{place}:1" for place in EXPORTING)]


def selected_kills(choice: str) -> list[str]:
    """All, so many, those with these ids, or a few that differ most."""
    if choice == "":
        return [*random.Random(SEED).sample(kills_of_a_volume(), FEW), *FEW_OF_A_STORE]
    if choice == "all" or choice.isdecimal():
        few = len(all_kills()) if choice == "all" else int(choice)
        return random.Random(SEED).sample(all_kills(), few) if few < len(all_kills()) else all_kills()
    return choice.split(",")


PUNCTUAL = """
from sluice_trainer.train.checkpoints.checkpoint import Checkpoints

begin = Checkpoints.save_in_background

def save_in_background(checkpoints, snapshot):
    if checkpoints._background is not None:
        checkpoints._background.join()
    return begin(checkpoints, snapshot)

Checkpoints.save_in_background = save_in_background
"""
"""On a busy machine a save may not have ended when the next one is due, which then comes later. Not here: the places
to be killed at are counted."""


@pytest.mark.parametrize("kill", selected_kills(os.environ.get("SLUICE_KILLS", "")))
def test_sigkill_costs_no_bit(
    job: Job, parent: Parent, undisturbed: WholeJob, kill: str, request: pytest.FixtureRequest
) -> None:
    """Of an output in an object store the next pod has nothing but what is there."""
    if kill.startswith(OF_A_STORE):
        job = request.getfixturevalue("stored_job")
    job = replace(job, training=TRAINING)
    stage, place = kill.removeprefix(OF_A_STORE).split(":", 1)
    before = parent.before(job, stage)
    killed = parent.start(job, stage, f"{place}:SIGKILL", PUNCTUAL)
    assert killed.wait() == -signal.SIGKILL
    durable = max((event["step"] for event in killed.events("checkpoint")), default=0)

    whole = run_to_the_end(parent, job, *before, killed)
    after = whole.runs[len(before) + 1]
    assert all((event["resumed_from"] or 0) >= durable for event in after.events("begin"))
    assert whole.losses == undisturbed.losses
    assert whole.digest == undisturbed.digest


def test_sigkill_while_a_damaged_checkpoint_is_replaced(job: Job, parent: Parent, undisturbed: WholeJob) -> None:
    job = Job(job.volumes, training=TRAINING)
    before = parent.before(job, "Train")
    first = parent.start(job, "Train", "forward:20:SIGKILL", PUNCTUAL)
    assert first.wait() == -signal.SIGKILL
    tensors = job.work / "checkpoints" / "step-8" / "state.safetensors"
    os.truncate(tensors, tensors.stat().st_size // 2)
    second = parent.start(job, "Train", "folder-set-aside:1:SIGKILL")
    assert second.wait() == -signal.SIGKILL

    whole = run_to_the_end(parent, job, *before, first, second)
    assert [event["resumed_from"] for run in whole.runs for event in run.events("begin")] == [None, 4, 4]
    assert whole.losses == undisturbed.losses
    assert whole.digest == undisturbed.digest
    assert not [*(job.work / "checkpoints").glob(".unfinished*")]
