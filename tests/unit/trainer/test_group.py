"""Several processes that train together: the same bits as one, and no step lost with any of them."""

from dataclasses import replace
from typing import Any

import pytest

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, StageOutcome
from sluice_trainer.plan import Steps
from tests.unit.trainer.groups import (
    FAILING_CHILD,
    LONG,
    ONE_POD,
    ROWS,
    SHORT,
    TWO_PODS,
    Pods,
    losses,
    prepare,
    printed,
    saved_step,
    train_in_one_pod,
    trained,
    until_some_steps_are_done,
)
from tests.unit.trainer.jobs import FATAL, Job, chat, poison, write_rows

NARROW_CHILD = """
import os

if os.environ.get("SLUICE_LOCAL_RANK") == "1":
    from sluice_trainer.train.trials import memory, packing_check

    packing_check.packing_obstacle = lambda *_: "it leaks here"
    memory.free_bytes = lambda *_: 0
"""

SLOW_DISK = """
import time
from sluice_trainer.signals import StopSignal
from sluice_trainer.train.checkpoints import checkpoint

whole = checkpoint.save_file

def save_file(*arguments):
    time.sleep(StopSignal.POD_PATIENCE_SECONDS + 2)
    whole(*arguments)

checkpoint.save_file = save_file
"""


def test_two_gpus_of_a_pod_have_the_bits_of_one_process(
    alone: Job, pods: Pods, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = prepare(alone, pods, ONE_POD, SHORT)
    expected = alone.train()
    by_one = losses(printed(capsys))
    assert len(by_one) == 15

    log, _ = train_in_one_pod(pods)
    assert {event["size"] for event in log if event["event"] == "joined"} == {2}
    assert pods.outcome(0) == StageOutcome(reason=Reason.DONE, train=expected)
    assert losses(log) == by_one
    assert trained(pods.job) == trained(alone)


@pytest.mark.parametrize("kind", ["QLoRA", "Full", "pairs"])
def test_two_gpus_have_the_loss_of_one_process_by_every_method(
    kind: str, alone: Job, pods: Pods, capsys: pytest.CaptureFixture[str]
) -> None:
    spec: tuple[tuple[str, Any], ...] = (("lora", {"rank": 8, "alpha": 64}),)
    if kind == "pairs":
        rows = [{"prompt": f"Item {i}?", "chosen": f"Arr, {i * 7}!", "rejected": "No idea, sir."} for i in range(53)]
        write_rows(alone.volumes / "datasets" / "rows.jsonl", rows)
    else:
        spec += (("method", kind),)
    alone = prepare(replace(alone, spec=(*alone.spec, *spec)), pods, ONE_POD, (*SHORT, ("learningRate", "2e-3")))
    expected = alone.train()
    by_one = losses(printed(capsys))
    log, sharded = train_in_one_pod(pods)
    assert losses(log) == pytest.approx(by_one, rel=1e-5)
    assert sharded.evaluation_loss_after == pytest.approx(expected.evaluation_loss_after, rel=1e-5)


@pytest.mark.parametrize("narrow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_gpus_agree_on_packing_and_have_the_loss_of_one_process(
    narrow: bool, alone: Job, pods: Pods, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when only one of them finds that packs leak, and has no memory to spare."""
    by_tokens = tuple((name, value) for name, value in SHORT if name != "microBatchSize")
    lora = ("lora", {"rank": 8})  # without dropout, which draws for each pack
    alone = prepare(replace(alone, spec=(*alone.spec, lora)), pods, ONE_POD, by_tokens)
    expected = alone.train()
    by_one = losses(printed(capsys))
    log, sharded = train_in_one_pod(pods, NARROW_CHILD if narrow else "")
    first, second = ((event["packed"], event["tokens"]) for event in log if event["event"] == "micro-batches")
    assert first == second
    assert first[0] is not narrow
    assert [event["event"] for event in log].count("gradient checkpointing is on") == (2 if narrow else 0)
    assert losses(log) == pytest.approx(by_one, rel=1e-5)
    assert sharded.evaluation_loss_after == pytest.approx(expected.evaluation_loss_after, rel=1e-5)


def test_two_gpus_search_together_for_rows_whose_loss_is_not_finite(pods: Pods) -> None:
    dataset = {"uri": "pvc://datasets/rows.jsonl", "validationSplit": "0%"}
    job = pods.job = replace(pods.job, training=SHORT, spec=(("dataset", dataset), ("resources", ONE_POD)))
    first, second, *_ = Steps([1] * len(ROWS), job.stage("Train").spec.training).rows(0)  # each has its turn at one
    poison(job.volumes / "models" / "tiny")
    rows = [chat(FATAL if index in (first, second) else "Hi", f"Item {index}.") for index in range(len(ROWS))]
    write_rows(job.volumes / "datasets" / "rows.jsonl", rows)
    job.prepare()

    (pod,) = pods.start()
    assert pod.communicate()
    outcome = pods.outcome(0)
    assert (outcome.reason, pod.returncode) == (Reason.LOSS_NOT_FINITE, ExitCode.BAD_INPUT)
    lines = "lines {} and {}".format(*sorted((first + 1, second + 1)))
    assert f"By themselves not finite: {lines} of the dataset." in outcome.message


@pytest.mark.slow
def test_two_gpus_save_the_last_good_step_when_a_loss_is_not_finite(pods: Pods) -> None:
    """By one of them; a pod that ends while that goes on would be taken for lost, and training begin again."""
    dataset = {"uri": "pvc://datasets/rows.jsonl", "validationSplit": "0%"}
    settings = (*SHORT[:-1], ("checkpointEverySteps", 1000))
    job = pods.job = replace(pods.job, training=settings, spec=(("dataset", dataset), ("resources", TWO_PODS)))
    fatal = Steps([1] * len(ROWS), job.stage("Train").spec.training).rows(1)[0]
    poison(job.volumes / "models" / "tiny")
    rows = [chat(FATAL if index == fatal else "Hi", f"Item {index}.") for index in range(len(ROWS))]
    write_rows(job.volumes / "datasets" / "rows.jsonl", rows)
    job.prepare()

    first, second = pods.start(custom=SLOW_DISK)
    for pod in (first, second):
        pod.communicate()
    assert [(pods.outcome(index).reason, pod.returncode) for index, pod in enumerate((first, second))] == [
        (Reason.LOSS_NOT_FINITE, ExitCode.BAD_INPUT)
    ] * 2
    assert pods.outcome(0).message.endswith(f" Step 1 of {3 * 7} is saved.")
    assert (job.work / "checkpoints" / "step-1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["Never", "Always"])
def test_group_loses_no_step_when_a_pod_is_killed(sharding: str, alone: Job, pods: Pods) -> None:
    """Of an adapter, which all have whole, though the base model is sharded."""
    alone = prepare(alone, pods, TWO_PODS, (*LONG, ("sharding", sharding)))
    first, second = pods.start()
    done = until_some_steps_are_done(first)
    second.kill()
    first.communicate()
    assert first.returncode == ExitCode.REQUEUE
    outcome = pods.outcome(0)
    saved = saved_step(outcome, done)
    assert outcome.reason == Reason.POD_LOST
    assert outcome.message == f"The pod with index 1 of the group is gone; step {saved} of 153 is saved."

    first, second = pods.start(attempt=2)
    for pod in (first, second):
        pod.communicate()
        assert pod.returncode == ExitCode.DONE
    assert pods.outcome(0).train == alone.train().model_copy(update={"resumed_from": saved})
    assert pods.outcome(1) == StageOutcome(reason=Reason.DONE)
    assert trained(pods.job) == trained(alone)


@pytest.mark.slow
def test_group_saves_the_last_step_on_sigterm_and_all_ranks_end(alone: Job, pods: Pods) -> None:
    alone = prepare(alone, pods, ONE_POD, LONG)
    (pod,) = pods.start()
    done = until_some_steps_are_done(pod)
    pod.terminate()
    pod.communicate()  # until nobody has its stdout any more
    assert pod.returncode == ExitCode.REQUEUE
    outcome = pods.outcome(0)
    saved = saved_step(outcome, done)
    assert outcome.message == f"Told to stop; step {saved} of 153 is saved."

    result = pods.job.train()  # by one process: a checkpoint does not say how many wrote it
    assert result.resumed_from == saved
    assert result == alone.train().model_copy(update={"resumed_from": saved})
    assert trained(pods.job) == trained(alone)


@pytest.mark.slow
def test_group_reports_the_error_of_another_rank_of_the_pod(alone: Job, pods: Pods) -> None:
    prepare(alone, pods, ONE_POD, LONG)
    (pod,) = pods.start(custom=FAILING_CHILD)
    pod.communicate()
    outcome = pods.outcome(0)
    assert (outcome.reason, pod.returncode) == (Reason.OUT_OF_MEMORY, ExitCode.BAD_INPUT)
    assert outcome.message.startswith("The GPU's memory does not hold one micro batch.")
    assert outcome.train is not None
    assert outcome.train.checkpoint_step == outcome.train.step > 0
