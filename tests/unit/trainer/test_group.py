"""Several processes that train together: the same bits as one, and no step lost with any of them."""

import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.ports import free_port
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, StageOutcome
from sluice_trainer.plan import Steps
from tests.unit.trainer.jobs import FATAL, REPOSITORY, Job, chat, events, poison, write_rows

ROWS = [chat(f"What is item {i}?", f"Arr, item {i} be {i * 7} doubloons!") for i in range(55)]
"""33 to train on and 22 held out: a pass is four steps of 8 rows and one of a single row, which one rank of two has."""
SHORT = (("epochs", 3), ("warmupSteps", 2), ("microBatchSize", 4), ("checkpointEverySteps", 1))
"""15 steps, each of which is saved, so that its loss is logged. Two ranks do at once what one process does in turn."""
LONG = (("epochs", 9), ("warmupSteps", 2), ("batchSize", 2), ("microBatchSize", 1), ("checkpointEverySteps", 1000))
"""153 steps, of which only the last is saved, unless something happens in their middle."""
ONE_POD, TWO_PODS = {"gpus": 2}, {"nodes": 2}

FAILING_CHILD = """
import os

if os.environ.get("SLUICE_LOCAL_RANK") == "1":
    import torch
    from sluice_trainer.train import batches

    whole, left = batches.summed_loss, iter(range(30))

    def summed_loss(model, batch):
        if next(left, None) is None:
            raise torch.OutOfMemoryError("no room")
        return whole(model, batch)

    batches.summed_loss = summed_loss
"""
"""A sitecustomize.py, which Python runs first."""


NARROW_CHILD = """
import os

if os.environ.get("SLUICE_LOCAL_RANK") == "1":
    from sluice_trainer.train import exact, memory

    exact.why_not_packed = lambda *_: "it leaks here"
    memory.free_bytes = lambda *_: 0
"""


class Pods:
    """The pods of a group, as processes of this machine."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.port = free_port()
        self.all: list[subprocess.Popen[str]] = []

    def start(self, attempt: int = 1, **environment: str) -> list[subprocess.Popen[str]]:
        pods = [
            self.job.start(
                "Train",
                attempt,
                **{
                    "JOB_COMPLETION_INDEX": str(index),
                    "MASTER_ADDR": "127.0.0.1",
                    "SLUICE_LEADER_PORT": str(self.port),
                    "SLUICE_TERMINATION_FILE": str(self._outcome(index)),
                    "GLOO_SOCKET_IFNAME": "lo",
                    **environment,
                },
            )
            for index in range(self.job.stage("Train").spec.resources.nodes)
        ]
        self.all += pods
        return pods

    def outcome(self, index: int) -> StageOutcome:
        return StageOutcome.model_validate_json(self._outcome(index).read_bytes())

    def _outcome(self, index: int) -> Path:
        return self.job.volumes / f"outcome-{index}.json"


@pytest.fixture
def alone(job: Job) -> Job:
    """A job of one process, which a group is compared with."""
    write_rows(job.volumes / "datasets" / "rows.jsonl", ROWS)
    dataset = {"uri": "pvc://datasets/rows.jsonl", "validationSplit": "40%"}
    return replace(job, name="alone", training=SHORT, spec=(("dataset", dataset),))


@pytest.fixture
def pods(alone: Job) -> Iterator[Pods]:
    """The pods of the job `group`; none of them outlives the test."""
    pods = Pods(replace(alone, name="group"))
    yield pods
    for pod in pods.all:
        pod.kill()
        pod.communicate()


def prepare(alone: Job, pods: Pods, resources: dict[str, int], training: tuple[tuple[str, Any], ...]) -> Job:
    """Both jobs' rows; returns the job of one process."""
    alone = replace(alone, training=training)
    pods.job = replace(alone, name="group", spec=(*alone.spec, ("resources", resources)))
    alone.prepare()
    pods.job.prepare()
    return alone


def saved_step(outcome: StageOutcome, done: int) -> int:
    """The step that a group which was stopped has saved: in the middle, and not before what it had done."""
    assert outcome.train is not None
    saved = outcome.train.checkpoint_step
    assert saved is not None
    assert done <= saved < 153
    return saved


def until_some_steps_are_done(process: subprocess.Popen[str]) -> int:
    return next(int(event["step"]) for event in events(process) if event["event"] == "report" and event["step"] > 0)


def losses(log: Iterable[dict[str, Any]]) -> dict[int, float]:
    """The loss of each step, as logged."""
    return {event["step"]: event["loss"] for event in log if event["event"] == "step"}


def trained(job: Job) -> bytes:
    """Weights and moments after the last step, and where it stands."""
    steps = max(int(folder.name.removeprefix("step-")) for folder in (job.work / "checkpoints").glob("step-*"))
    folder = job.work / "checkpoints" / f"step-{steps}"
    return (folder / "state.safetensors").read_bytes() + (folder / "state.json").read_bytes()


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_two_gpus_of_a_pod_learn_the_same_bits_as_one_process(
    alone: Job, pods: Pods, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = prepare(alone, pods, ONE_POD, SHORT)
    expected = alone.train()
    by_one = losses(printed(capsys))
    assert len(by_one) == 15

    (pod,) = pods.start()
    log = list(events(pod))
    assert pod.wait(10) == ExitCode.DONE
    assert {event["size"] for event in log if event["event"] == "joined"} == {2}
    assert pods.outcome(0) == StageOutcome(reason=Reason.DONE, train=expected)
    assert losses(log) == by_one
    assert trained(pods.job) == trained(alone)


@pytest.mark.parametrize("kind", ["QLoRA", "Full", "pairs"])
def test_two_gpus_learn_what_one_process_learns_by_every_method_and_of_pairs(
    kind: str, alone: Job, pods: Pods, capsys: pytest.CaptureFixture[str]
) -> None:
    spec: tuple[tuple[str, Any], ...] = (("lora", {"rank": 8, "alpha": 64}),)
    if kind == "pairs":
        rows = [{"prompt": f"Item {i}?", "chosen": f"Arr, {i * 7}!", "rejected": "No idea, sir."} for i in range(55)]
        write_rows(alone.volumes / "datasets" / "rows.jsonl", rows)
    else:
        spec += (("method", kind),)
    alone = prepare(replace(alone, spec=(*alone.spec, *spec)), pods, ONE_POD, (*SHORT, ("learningRate", "2e-3")))
    expected = alone.train()
    by_one = losses(printed(capsys))
    (pod,) = pods.start()
    log = list(events(pod))
    assert pod.wait(10) == ExitCode.DONE
    assert losses(log) == pytest.approx(by_one, rel=1e-5)
    together = pods.outcome(0).train
    assert together is not None
    assert together.evaluation_loss_after == pytest.approx(expected.evaluation_loss_after, rel=1e-5)


@pytest.mark.parametrize("narrow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_gpus_that_pack_alike_learn_what_one_process_learns(
    narrow: bool, alone: Job, pods: Pods, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when only one of them finds that packs leak, and has no memory to spare."""
    if narrow:
        (tmp_path / "sitecustomize.py").write_text(NARROW_CHILD)
    by_tokens = tuple((name, value) for name, value in SHORT if name != "microBatchSize")
    lora = ("lora", {"rank": 8})  # without dropout, which draws for each pack
    alone = prepare(replace(alone, spec=(*alone.spec, lora)), pods, ONE_POD, by_tokens)
    expected = alone.train()
    by_one = losses(printed(capsys))
    (pod,) = pods.start(PYTHONPATH=f"{tmp_path}:{REPOSITORY}/operator:{REPOSITORY}/trainer_image")
    log = list(events(pod))
    assert pod.wait(10) == ExitCode.DONE
    first, second = ((event["packed"], event["tokens"]) for event in log if event["event"] == "micro-batches")
    assert first == second
    assert first[0] is not narrow
    assert [event["event"] for event in log].count("gradient checkpointing is on") == (2 if narrow else 0)
    assert losses(log) == pytest.approx(by_one, rel=1e-5)
    together = pods.outcome(0).train
    assert together is not None
    assert together.evaluation_loss_after == pytest.approx(expected.evaluation_loss_after, rel=1e-5)


def test_both_look_for_the_rows_whose_loss_is_no_number(pods: Pods) -> None:
    dataset = {"uri": "pvc://datasets/rows.jsonl", "validationSplit": "0%"}
    job = pods.job = replace(pods.job, training=SHORT, spec=(("dataset", dataset), ("resources", ONE_POD)))
    first, second, *_ = Steps([1] * len(ROWS), job.stage("Train").spec.training).rows(0)  # each has its turn at one
    poison(job.volumes / "models" / "tiny")
    rows = [chat(FATAL if index in (first, second) else "Hi", f"Item {index}.") for index in range(len(ROWS))]
    write_rows(job.volumes / "datasets" / "rows.jsonl", rows)
    job.prepare()

    (pod,) = pods.start()
    assert pod.communicate(timeout=100)
    outcome = pods.outcome(0)
    assert (outcome.reason, pod.returncode) == (Reason.LOSS_NOT_FINITE, ExitCode.BAD_INPUT)
    lines = "lines {} and {}".format(*sorted((first + 1, second + 1)))
    assert f"By themselves not finite: {lines} of the dataset." in outcome.message


@pytest.mark.slow
def test_a_pod_that_is_killed_costs_no_step(alone: Job, pods: Pods) -> None:
    alone = prepare(alone, pods, TWO_PODS, LONG)
    first, second = pods.start()
    done = until_some_steps_are_done(first)
    second.kill()
    first.communicate(timeout=20)
    assert first.returncode == ExitCode.REQUEUE
    outcome = pods.outcome(0)
    saved = saved_step(outcome, done)
    assert outcome.reason == Reason.POD_LOST
    assert outcome.message == f"The pod with index 1 of the group is gone; step {saved} of 153 is saved."

    first, second = pods.start(attempt=2)
    for pod in (first, second):
        pod.communicate(timeout=100)
        assert pod.returncode == ExitCode.DONE
    assert pods.outcome(0).train == alone.train().model_copy(update={"resumed_from": saved})
    assert pods.outcome(1) == StageOutcome(reason=Reason.DONE)
    assert trained(pods.job) == trained(alone)


@pytest.mark.slow
def test_sigterm_saves_the_last_step_and_takes_the_other_processes_along(alone: Job, pods: Pods) -> None:
    alone = prepare(alone, pods, ONE_POD, LONG)
    (pod,) = pods.start()
    done = until_some_steps_are_done(pod)
    pod.terminate()
    pod.communicate(timeout=10)  # until nobody has its stdout any more
    assert pod.returncode == ExitCode.REQUEUE
    outcome = pods.outcome(0)
    saved = saved_step(outcome, done)
    assert outcome.message == f"Told to stop; step {saved} of 153 is saved."

    result = pods.job.train()  # by one process: a checkpoint does not say how many wrote it
    assert result.resumed_from == saved
    assert result == alone.train().model_copy(update={"resumed_from": saved})
    assert trained(pods.job) == trained(alone)


@pytest.mark.slow
def test_what_goes_wrong_in_another_process_of_the_pod_is_what_the_pod_says(
    alone: Job, pods: Pods, tmp_path: Path
) -> None:
    prepare(alone, pods, ONE_POD, LONG)
    (tmp_path / "sitecustomize.py").write_text(FAILING_CHILD)
    (pod,) = pods.start(PYTHONPATH=f"{tmp_path}:{REPOSITORY}/operator:{REPOSITORY}/trainer_image")
    pod.communicate(timeout=100)
    outcome = pods.outcome(0)
    assert (outcome.reason, pod.returncode) == (Reason.OUT_OF_MEMORY, ExitCode.BAD_INPUT)
    assert outcome.message.startswith("The GPU's memory does not hold one micro batch.")
    assert outcome.train is not None
    assert outcome.train.checkpoint_step == outcome.train.step > 0
