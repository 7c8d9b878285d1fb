"""A sharded model: the result is that of one process, and no step is lost at a stop."""

import re
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch._C._distributed_c10d import HashStore

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_trainer import base_model
from sluice_trainer.ranks import Rank
from sluice_trainer.train.checkpoints.tensor_files import WHOLE, read
from sluice_trainer.train.group import Group
from sluice_trainer.train.weights.model import load
from sluice_trainer.train.weights.sharding import mesh_of, shard
from tests.unit.trainer.groups import (
    FAILING_CHILD,
    LONG,
    ONE_POD,
    SHORT,
    TWO_PODS,
    Pods,
    figures,
    losses,
    prepare,
    printed,
    saved_step,
    train_in_one_pod,
    until_some_steps_are_done,
)
from tests.unit.trainer.jobs import Job, write_rows

SHARDED = ("sharding", "Always")


@pytest.mark.parametrize("kind", ["LoRA", "Full", "pairs"])
def test_sharded_model_has_the_loss_of_one_process(
    kind: str, alone: Job, pods: Pods, capsys: pytest.CaptureFixture[str]
) -> None:
    spec: tuple[tuple[str, Any], ...] = (("method", "Full"),) if kind == "Full" else ()
    if kind == "pairs":
        rows = [{"prompt": f"Item {i}?", "chosen": f"Arr, {i * 7}!", "rejected": "No idea, sir."} for i in range(53)]
        write_rows(alone.volumes / "datasets" / "rows.jsonl", rows)
    settings = (*SHORT, ("learningRate", "2e-3"), SHARDED)
    alone = prepare(replace(alone, spec=(*alone.spec, *spec)), pods, ONE_POD, settings)
    expected = alone.train()
    by_one = printed(capsys)
    log, sharded = train_in_one_pod(pods)
    assert {event["trained"] for event in log if event["event"] == "sharded"} == {
        "sharded" if kind == "Full" else "whole"
    }
    assert losses(log) == pytest.approx(losses(by_one), rel=1e-5)
    norms = figures(by_one, "gradient_norm")
    assert figures(log, "gradient_norm") == pytest.approx(norms, rel=1e-4)  # Adam does not mind how long they are
    assert sharded.evaluation_loss_before == pytest.approx(expected.evaluation_loss_before, rel=1e-6)
    assert sharded.evaluation_loss_after == pytest.approx(expected.evaluation_loss_after, rel=1e-5)


def test_sharded_model_chooses_its_token_budget(alone: Job, pods: Pods, capsys: pytest.CaptureFixture[str]) -> None:
    """The processes measure together what a micro-batch takes; one of them has a row less in the last step."""
    settings = (("epochs", 2), ("warmupSteps", 2), ("checkpointEverySteps", 1), SHARDED, ("evaluateEverySteps", 3))
    alone = prepare(replace(alone, spec=(*alone.spec, ("method", "Full"))), pods, ONE_POD, settings)
    expected = alone.train()
    by_one = losses(printed(capsys))
    log, sharded = train_in_one_pod(pods)
    assert {event["packed"] for event in log if event["event"] == "micro-batches"} == {True}
    assert losses(log) == pytest.approx(by_one, rel=1e-5)
    assert sharded.evaluation_loss_after == pytest.approx(expected.evaluation_loss_after, rel=1e-5)


@pytest.mark.parametrize("resources", [ONE_POD, pytest.param(TWO_PODS, marks=pytest.mark.slow)])
def test_sharded_model_saves_the_same_step_in_all_processes_on_sigterm(
    resources: dict[str, int], alone: Job, pods: Pods, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any of them is told; the next attempt is of two processes, the last one of one."""
    settings = (*LONG, SHARDED)
    alone = prepare(replace(alone, spec=(*alone.spec, ("method", "Full"))), pods, resources, settings)
    alone.train()
    by_one = losses(printed(capsys))
    started = pods.start()
    done = until_some_steps_are_done(started[0])
    started[-1].terminate()
    for pod in started:
        pod.communicate()
        assert pod.returncode == ExitCode.REQUEUE
    first = saved_step(pods.outcome(0), done)
    assert pods.outcome(0).message.endswith(f"; step {first} of 153 is saved.")
    folder = pods.job.work / "checkpoints" / f"step-{first}"
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        "state-00001-of-00002.safetensors",
        "state-00002-of-00002.safetensors",
    ]

    started = pods.start(attempt=2)
    log = []
    for event in started[0].events():
        log.append(event)
        if event["event"] == "step" and event["step"] > first + 10:
            break
    started[0].terminate()
    for pod in started:
        pod.communicate()
        assert pod.returncode == ExitCode.REQUEUE
    assert losses(log) == pytest.approx({step: by_one[step] for step in losses(log)}, rel=1e-4)
    second = saved_step(pods.outcome(0), first + 10)
    result = pods.outcome(0).train
    assert result is not None
    assert result.resumed_from == first

    result = pods.job.train()
    assert result.resumed_from == second
    last = losses(printed(capsys))
    assert last == pytest.approx({step: by_one[step] for step in last}, rel=1e-4)


@pytest.mark.slow
def test_sharded_model_of_pods_that_share_no_volume_goes_on_from_its_last_step(
    alone: Job, stored_job: Job, pods: Pods, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its output is in an object store. The next attempt is of two pods, the last one of one."""
    alone = prepare(replace(alone, spec=(*alone.spec, ("method", "Full"))), pods, TWO_PODS, (*LONG, SHARDED))
    alone.train()
    by_one = losses(printed(capsys))
    pods.job = replace(pods.job, spec=(*pods.job.spec, ("output", dict(stored_job.spec)["output"])))
    pods.job.prepare()
    started = pods.start()
    done = until_some_steps_are_done(started[0])
    started[-1].terminate()
    for pod in started:
        pod.communicate()
        assert pod.returncode == ExitCode.REQUEUE
    first = saved_step(pods.outcome(0), done)
    started = pods.start(attempt=2)
    log = []
    for event in started[0].events():
        log.append(event)
        if event["event"] == "step" and event["step"] > first + 10:
            break
    for pod in started:
        pod.kill()
        pod.communicate()
    assert losses(log) == pytest.approx({step: by_one[step] for step in losses(log)}, rel=1e-4)
    assert pods.job.train().resumed_from == first
    last = losses(printed(capsys))
    assert last == pytest.approx({step: by_one[step] for step in last}, rel=1e-4)
    assert max(last) == 153


def test_sharded_weights_are_gathered_in_the_jobs_dtype(job: Job) -> None:
    spec = replace(job, spec=(("method", "Full"),), training=(("dtype", "bfloat16"),)).stage("Train").spec
    model = load(base_model.locate("pvc://models/tiny"), spec, torch.device("cpu"))
    used: set[torch.dtype] = set()
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_pre_hook(lambda part, _: used.add(part.weight.dtype))
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        group = Group(Rank(), torch.device("cpu"))
        shard(model, group, mesh_of(group), spec)
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        model(torch.tensor([[1, 2, 3]]))
    finally:
        dist.destroy_process_group()
    assert used == {torch.bfloat16}


@pytest.mark.slow
def test_sharded_model_with_sigterm_to_the_pods_one_by_one(alone: Job, pods: Pods) -> None:
    """A drain tells the pods one by one. The base model is sharded, the adapter whole: no process waits for another."""
    prepare(alone, pods, TWO_PODS, (*LONG, SHARDED))
    first, second = pods.start()
    done = until_some_steps_are_done(first)
    second.terminate()
    time.sleep(0.3)  # less than a peer's patience
    first.terminate()
    for pod in (first, second):
        pod.communicate()
        assert pod.returncode == ExitCode.REQUEUE
    saved_step(pods.outcome(0), done)


@pytest.mark.slow
def test_sharded_model_loses_steps_since_the_checkpoint_if_a_pod_is_killed(alone: Job, pods: Pods) -> None:
    settings = (*LONG, SHARDED, ("checkpointEverySteps", 10))
    alone = prepare(replace(alone, spec=(*alone.spec, ("method", "Full"))), pods, TWO_PODS, settings)
    first, second = pods.start()
    for event in first.events():
        if event["event"] == "checkpoint":
            break
    second.kill()
    first.communicate()
    outcome = pods.outcome(0)
    assert (outcome.reason, first.returncode) == (Reason.POD_LOST, ExitCode.REQUEUE)
    steps = re.match(r"Step (\d+) could not be saved; step (\d+) is durable\.", outcome.message)
    assert steps, outcome.message
    started = pods.start(attempt=2)
    for pod in started:
        pod.communicate()
        assert pod.returncode == ExitCode.DONE
    result = pods.outcome(0).train
    assert result is not None
    assert result.resumed_from == int(steps[2])
    assert result.resumed_from % 10 == 0


@pytest.mark.slow
def test_sharded_model_reports_the_error_of_another_rank(alone: Job, pods: Pods) -> None:
    """Though nothing can be saved any more."""
    prepare(replace(alone, spec=(*alone.spec, ("method", "Full"))), pods, ONE_POD, (*LONG, SHARDED))
    (pod,) = pods.start(custom=FAILING_CHILD)
    pod.communicate()
    outcome = pods.outcome(0)
    assert (outcome.reason, pod.returncode) == (Reason.OUT_OF_MEMORY, ExitCode.BAD_INPUT)
    assert outcome.message.startswith("The GPU's memory does not hold one micro batch.")


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_sharded_model_exports_its_best_checkpoint(dtype: str, alone: Job, pods: Pods) -> None:
    """With activations worked out anew, and in bfloat16 with weights that are rounded when they are put together."""
    more = (("exportedCheckpoint", "Best"), ("evaluateEverySteps", 2), ("gradientCheckpointing", "Always"))
    settings = (*SHORT, SHARDED, ("learningRate", "2e-3"), ("keepCheckpoints", 1), ("dtype", dtype), *more)
    alone = prepare(replace(alone, spec=(*alone.spec, ("method", "Full"))), pods, ONE_POD, settings)
    expected = alone.train()
    (pod,) = pods.start()
    pod.communicate()
    assert pod.returncode == ExitCode.DONE
    result = pods.outcome(0).train
    assert result is not None
    tolerance = {"float32": 1e-5, "bfloat16": 3e-2}[dtype]
    assert result.evaluation_loss_after == pytest.approx(expected.evaluation_loss_after, rel=tolerance)
    if dtype == "float32":
        assert result.exported_step == expected.exported_step
    kept = {path.name for path in (pods.job.work / "checkpoints").glob("step-*")}
    assert {f"step-{result.exported_step}", "step-15"} <= kept
    assert len(kept) <= 2  # of one that is kept, and the best one on the way
    pods.job.export()
    exported = load_file(pods.job.work / "export" / "model.safetensors")
    checkpoint = pods.job.work / "checkpoints" / f"step-{result.exported_step}"
    trained = read(checkpoint, [path.name for path in checkpoint.iterdir()], WHOLE, ("weight.",))
    assert trained
    for name, weight in trained.items():
        assert torch.equal(
            exported[name.removeprefix("weight.")], weight.to(exported[name.removeprefix("weight.")].dtype)
        )
