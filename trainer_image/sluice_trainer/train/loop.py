"""The Train stage, from top to bottom.

A loop of our own rather than transformers' Trainer: saving within two seconds of SIGTERM and resuming to the very
same bits would override most of it.
"""

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from sluice_api.reports import Activity
from sluice_api.stages import StageSpec, TrainResult
from sluice_trainer import failpoints, logs, metrics, plan, prepared
from sluice_trainer.errors import StageError
from sluice_trainer.ranks import Rank
from sluice_trainer.report import Reporter
from sluice_trainer.signals import StopSignal
from sluice_trainer.train.batches import all_tokens, batches_of
from sluice_trainer.train.checkpoints.checkpoint import Checkpoints
from sluice_trainer.train.checkpoints.state import Progress
from sluice_trainer.train.evaluate import evaluate
from sluice_trainer.train.finite import gradient_error, loss_error
from sluice_trainer.train.group import joined
from sluice_trainer.train.pace import Pace
from sluice_trainer.train.packing import Batching
from sluice_trainer.train.randomness import seed_all
from sluice_trainer.train.run import Run, decide_batching, load_run, resume
from sluice_trainer.train.watchdog import Watchdog
from sluice_trainer.work import work_of


@dataclass(frozen=True)
class Step:
    """The outcome of the forward and backward passes of one optimizer step."""

    loss_sum: float
    count: int
    """What the loss is a mean over: loss tokens, or pairs."""
    tokens: int
    learning_rate: float
    gradient_norm: float
    """Before it was clipped."""

    @property
    def loss(self) -> float:
        """The mean, in nats."""
        return self.loss_sum / self.count

    @property
    def is_finite(self) -> bool:
        """Whether the optimizer can take the step without ruining the weights."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def train(stage: StageSpec, rank: Rank, reporter: Reporter, stop: StopSignal) -> TrainResult:
    """Train until all steps are done. SIGTERM may end the process at any moment; the next attempt goes on from there.

    All processes of the group call this together; only the leader reports, saves and completes.

    Raises:
        PeerLost: another process of the group is gone.
        StageError: the loss is not finite, or model, rows or output can't be used.
    """
    work = work_of(stage)
    manifest = prepared.manifest_of(work.fetch(work.folder / "prepared"), stage)
    checkpoints = Checkpoints(stage, manifest.plan, work)
    if (earlier := checkpoints.completed()) is not None:
        return earlier
    if rank.leads:
        metrics.serve()
        metrics.follow_activity(reporter)
    with Watchdog(reporter) as watchdog, joined(rank, reporter, stop) as group:
        return _run_training(load_run(stage, group, checkpoints, reporter, watchdog), stop)


def _run_training(run: Run, stop: StopSignal) -> TrainResult:
    checkpoints = run.checkpoints
    resumed_from = resume(run)
    batching = decide_batching(run)
    if run.state.progress.evaluation_loss_before is None:
        before = evaluate(run, batching)
        run.state.progress = run.state.progress.model_copy(update={"evaluation_loss_before": before})

    def result(**at_the_end: Any) -> TrainResult:
        progress = run.state.progress
        return TrainResult(
            step=progress.step,
            total_steps=progress.total_steps,
            checkpoint_step=checkpoints.durable_step,
            resumed_from=resumed_from,
            evaluation_loss_before=progress.evaluation_loss_before,
            **at_the_end,
        )

    def save_last() -> TrainResult:
        checkpoints.save_last(run.state)
        return result()

    if run.saves:
        stop.set_save(save_last)
    if checkpoints.sharded is not None:
        checkpoints.sharded.on_peer_stop(stop.end)
    _train_remaining_steps(run, batching)
    loss = evaluate(run, batching)
    last = run.state.progress.evaluated(loss)
    if run.exports_best:
        complete = result(exported_step=last.best_step, evaluation_loss_after=last.best_loss)
    else:
        complete = result(exported_step=last.step, evaluation_loss_after=loss)
    if run.group.leads:
        checkpoints.complete(complete)
    return complete


def _train_remaining_steps(run: Run, batching: Batching) -> None:
    """Do all steps that are left, with a durable checkpoint every checkpointEverySteps and after the last one."""
    state, pace, due = run.state, Pace(), False
    total = state.progress.total_steps
    run.watchdog.heartbeat(activity=Activity.TRAINING)
    while state.progress.step < total:
        if _is_due(run.training.evaluate_every_steps, state.progress.step) and not state.progress.is_evaluated:
            _evaluate_between_steps(run, batching)
        pace.start()
        step = _forward_and_backward(run, batching)
        if not step.is_finite:
            raise _save_last_good_step(run, _not_finite(run, step))
        for group in state.optimizer.param_groups:
            group["lr"] = step.learning_rate
        failpoints.reached("update-begins")
        with state.updating():
            state.optimizer.step()
            failpoints.reached("update-half-done")
            state.progress = _next_progress(run, step)
            pace.step(step.tokens)
            _report(run, step, pace)  # reported before a checkpoint can have it
        failpoints.reached("update-done")
        state.optimizer.zero_grad()
        due = due or _is_due(run.training.checkpoint_every_steps, state.progress.step)
        if due and run.saves and state.progress.step < total:
            with metrics.SAVE_SECONDS.time():
                due = not _save_in_background(run)
    if run.saves:
        with _saving(run):
            saved = run.checkpoints.save(state.snapshot)
        run.reporter.update(checkpoint_step=saved)


@contextmanager
def _saving(run: Run) -> Iterator[None]:
    """Tell the operator that training stands still for a save, which may take as long as a start.

    To an object store it may take longer, but no request to one takes for ever.
    """
    run.watchdog.heartbeat(activity=Activity.SAVING)
    in_store = run.checkpoints.work.is_copied
    with metrics.SAVE_SECONDS.time(), run.watchdog.heartbeats(activity=Activity.SAVING) if in_store else nullcontext():
        yield


def _save_in_background(run: Run) -> bool:
    """Begin a save in the background, unless an earlier one goes on; if the model is sharded, in any process."""
    if run.weights.are_sharded and not run.group.all_agree(not run.checkpoints.is_saving):
        return False
    return run.checkpoints.save_in_background(run.state.snapshot)


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _forward_and_backward(run: Run, batching: Batching) -> Step:
    """Compute the clipped gradients of a step's mean loss, the same for any number of processes and micro-batches."""
    step, group = run.state.progress.step, run.group
    rows = run.steps.rows(step)
    count = run.objective.count(run.data.training, rows)
    loss_sum = torch.zeros((), device=group.device)
    for position, batch, weight in batches_of(run.data.training, rows, batching, group):
        seed_all(run.training.seed, step, position)
        failpoints.reached("forward")
        loss = run.objective.summed_loss(run.token_loss, batch) * weight
        failpoints.reached("backward")
        (loss / count).backward()
        loss_sum += loss.detach()
    run.weights.sum_gradients_(loss_sum)
    norm = run.weights.clip_gradients_(float(run.training.max_gradient_norm))
    tokens = all_tokens(run.data.training, rows)
    return Step(loss_sum.item(), count, tokens, run.state.progress.learning_rate, norm.item())


def _not_finite(run: Run, step: Step) -> StageError:
    """The error for a step whose loss or gradient is not finite."""
    progress, data = run.state.progress, run.data.training
    rows = run.steps.rows(progress.step)
    at = f"of step {progress.step + 1} of {progress.total_steps}"
    rate = f"at learning rate {step.learning_rate:g}."
    if math.isfinite(step.loss):
        return gradient_error(f"The gradient norm {at} is {step.gradient_norm} {rate}", data, rows)
    return loss_error(f"The loss {at} is {step.loss} {rate}", run.token_loss, data, rows, run.group)


def _save_last_good_step(run: Run, error: StageError) -> StageError:
    """Save the last good step. Returns the error that ends training, with what is saved.

    All processes wait for each other at the end: one that ended before would end the others unsaved.
    """
    progress = run.state.progress
    if progress.step == 0:
        return error
    if run.saves:
        try:
            with _saving(run):
                rest = f"Step {run.checkpoints.save(run.state.snapshot)} of {progress.total_steps} is saved."
        except StageError as lost:
            rest = lost.message
        error = StageError(error.reason, f"{error.message} {rest}", error.code)
    run.group.barrier()
    return error


def _next_progress(run: Run, step: Step) -> Progress:
    progress = run.state.progress
    done = progress.step + 1
    epoch, row = run.steps.position(done)
    return progress.model_copy(
        update={
            "step": done,
            "epoch": epoch,
            "row": row,
            "learning_rate": plan.learning_rate(done, progress.total_steps, run.training),
            "tokens": progress.tokens + step.tokens,
        }
    )


def _report(run: Run, step: Step, pace: Pace) -> None:
    progress = run.state.progress
    epoch = round(run.steps.epochs_before(progress.step), 4)
    figures: dict[str, float | None] = {
        "learning_rate": step.learning_rate,
        "gradient_norm": step.gradient_norm,
        "tokens_per_second": round(pace.tokens_per_second, 1),
        "seconds_left": pace.seconds_left(progress.total_steps - progress.step),
        "gpu_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    metrics.STEP_SECONDS.observe(pace.last_seconds)
    metrics.TOKENS.inc(step.tokens)
    metrics.set_gauges(step=progress.step, total_steps=progress.total_steps, epoch=epoch, loss=step.loss, **figures)
    if run.group.leads:
        logs.metric(
            "step", f"step {progress.step} of {progress.total_steps}: loss {step.loss:.4f}",
            step=progress.step, epoch=epoch, loss=step.loss, **figures,
        )  # fmt: skip
    run.watchdog.step(
        pace.step_seconds,
        loss_sum=step.loss_sum,
        loss_count=step.count,
        step=progress.step,
        epoch=epoch,
        checkpoint_step=run.checkpoints.durable_step,
        unsaved=run.checkpoints.unsaved,
        **figures,
    )


def _evaluate_between_steps(run: Run, batching: Batching) -> None:
    """Measure the held-out loss before the next step, also when this process has just resumed."""
    progress = run.state.progress.evaluated(evaluate(run, batching))
    is_best = run.exports_best and progress.best_step == progress.step
    if is_best and run.saves:
        with _saving(run):
            if not run.checkpoints.save_best(progress.step, run.state.snapshot):
                progress = run.state.progress.evaluated(None)
    run.state.progress = progress
    run.watchdog.heartbeat(activity=Activity.TRAINING)
