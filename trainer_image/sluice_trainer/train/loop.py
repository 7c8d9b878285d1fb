"""The Train stage, from top to bottom.

A loop of our own rather than transformers' Trainer: saving within two seconds of SIGTERM and resuming to the very
same bits would override most of it.
"""

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from sluice_api.reports import Activity
from sluice_api.stages import StageSpec, TrainResult
from sluice_trainer import failpoints, logs, metrics, plan
from sluice_trainer.errors import StageError
from sluice_trainer.ranks import Rank
from sluice_trainer.report import Reporter
from sluice_trainer.signals import StopSignal
from sluice_trainer.train.batches import all_tokens, batches_of
from sluice_trainer.train.checkpoints.checkpoint import Checkpoints
from sluice_trainer.train.checkpoints.state import Standing
from sluice_trainer.train.evaluate import evaluate
from sluice_trainer.train.finite import gradient_error, loss_error
from sluice_trainer.train.group import joined
from sluice_trainer.train.pace import Pace
from sluice_trainer.train.packing import Batching
from sluice_trainer.train.randomness import seed_all
from sluice_trainer.train.run import Run, decide_batching, load_run, resume
from sluice_trainer.train.watchdog import Watchdog


@dataclass(frozen=True)
class Step:
    """What one optimizer step came to."""

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
        """It can be taken without ruining the weights."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def train(stage: StageSpec, rank: Rank, reporter: Reporter, stop: StopSignal) -> TrainResult:
    """Train until done. SIGTERM ends the process at any moment; the next attempt goes on from the same step.

    Several processes do this together; only the one that leads them reports, saves and completes.

    Raises:
        PeerLost: another process of the group is gone.
        StageError: the loss is not finite, or model, rows or output can't be used.
    """
    checkpoints = Checkpoints(stage)
    if (earlier := checkpoints.completed()) is not None:
        return earlier
    if rank.leads:
        metrics.serve()
        metrics.follow(reporter)
    with Watchdog(reporter) as watchdog, joined(rank, reporter, stop) as group:
        return _trained(load_run(stage, group, checkpoints, reporter, watchdog), stop)


def _trained(run: Run, stop: StopSignal) -> TrainResult:
    checkpoints = run.checkpoints
    resumed_from = resume(run)
    batching = decide_batching(run)
    if run.state.standing.evaluation_loss_before is None:
        before = evaluate(run, batching)
        run.state.standing = run.state.standing.model_copy(update={"evaluation_loss_before": before})

    def result(**at_the_end: Any) -> TrainResult:
        standing = run.state.standing
        return TrainResult(
            step=standing.step,
            total_steps=standing.total_steps,
            checkpoint_step=checkpoints.durable_step,
            resumed_from=resumed_from,
            evaluation_loss_before=standing.evaluation_loss_before,
            **at_the_end,
        )

    def save_last() -> TrainResult:
        checkpoints.save_last(run.state)
        return result()

    if run.saves:
        stop.saved_by(save_last)
    if checkpoints.together is not None:
        checkpoints.together.when_somebody_stops(stop.end)
    _train_to_the_end(run, batching)
    loss = evaluate(run, batching)
    last = run.state.standing.evaluated(loss)
    if run.exports_best:
        complete = result(exported_step=last.best_step, evaluation_loss_after=last.best_loss)
    else:
        complete = result(exported_step=last.step, evaluation_loss_after=loss)
    if run.group.leads:
        checkpoints.complete(complete)
    return complete


def _train_to_the_end(run: Run, batching: Batching) -> None:
    """All steps that are left, with a durable checkpoint every so often and after the last one."""
    state, pace, due = run.state, Pace(), False
    total = state.standing.total_steps
    run.watchdog.heartbeat(activity=Activity.TRAINING)
    while state.standing.step < total:
        if _is_due(run.training.evaluate_every_steps, state.standing.step) and not state.standing.is_evaluated:
            _evaluate_between(run, batching)
        pace.start()
        step = _forward_and_backward(run, batching)
        if not step.is_finite:
            raise _with_the_last_good_step_saved(run, _not_finite(run, step))
        for group in state.optimizer.param_groups:
            group["lr"] = step.learning_rate
        failpoints.reached("update-begins")
        with state.updating():
            state.optimizer.step()
            failpoints.reached("update-half-done")
            state.standing = _next_standing(run, step)
            pace.step(step.tokens)
            _report(run, step, pace)  # a step that can be saved has been told
        failpoints.reached("update-done")
        state.optimizer.zero_grad()
        due = due or _is_due(run.training.checkpoint_every_steps, state.standing.step)
        if due and run.saves and state.standing.step < total:
            with metrics.SAVE_SECONDS.time():
                due = not _save_behind(run)
    if run.saves:
        with _saving(run):
            saved = run.checkpoints.save(state.snapshot)
        run.reporter.update(checkpoint_step=saved)


@contextmanager
def _saving(run: Run) -> Iterator[None]:
    """Training stands still for a save, which the operator allows to take as long as a start."""
    run.watchdog.heartbeat(activity=Activity.SAVING)
    with metrics.SAVE_SECONDS.time():
        yield


def _save_behind(run: Run) -> bool:
    """Begin a save, unless an earlier one goes on; when all save together, anybody's."""
    if run.weights.are_parts and not run.group.all_agree(not run.checkpoints.is_saving):
        return False
    return run.checkpoints.save_behind(run.state.snapshot)


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _forward_and_backward(run: Run, batching: Batching) -> Step:
    """Clipped gradients of the mean loss over all that the step counts, however many share it, in whatever pieces."""
    step, group = run.state.standing.step, run.group
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
    return Step(loss_sum.item(), count, tokens, run.state.standing.learning_rate, norm.item())


def _not_finite(run: Run, step: Step) -> StageError:
    """Why a step is not taken."""
    standing, data = run.state.standing, run.data.training
    rows = run.steps.rows(standing.step)
    at = f"of step {standing.step + 1} of {standing.total_steps}"
    rate = f"at learning rate {step.learning_rate:g}."
    if math.isfinite(step.loss):
        return gradient_error(f"The gradient norm {at} is {step.gradient_norm} {rate}", data, rows)
    return loss_error(f"The loss {at} is {step.loss} {rate}", run.token_loss, data, rows, run.group)


def _with_the_last_good_step_saved(run: Run, error: StageError) -> StageError:
    """The error that ends the training, and what is left of it. Who ends first would take the others with it."""
    standing = run.state.standing
    if standing.step == 0:
        return error
    if run.saves:
        try:
            with _saving(run):
                rest = f"Step {run.checkpoints.save(run.state.snapshot)} of {standing.total_steps} is saved."
        except StageError as lost:
            rest = lost.message
        error = StageError(error.reason, f"{error.message} {rest}", error.code)
    run.group.barrier()
    return error


def _next_standing(run: Run, step: Step) -> Standing:
    standing = run.state.standing
    done = standing.step + 1
    epoch, row = run.steps.position(done)
    return standing.model_copy(
        update={
            "step": done,
            "epoch": epoch,
            "row": row,
            "learning_rate": plan.learning_rate(done, standing.total_steps, run.training),
            "tokens": standing.tokens + step.tokens,
        }
    )


def _report(run: Run, step: Step, pace: Pace) -> None:
    standing = run.state.standing
    epoch = round(run.steps.epochs_before(standing.step), 4)
    figures: dict[str, float | None] = {
        "learning_rate": step.learning_rate,
        "gradient_norm": step.gradient_norm,
        "tokens_per_second": round(pace.tokens_per_second, 1),
        "seconds_left": pace.seconds_left(standing.total_steps - standing.step),
        "gpu_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    metrics.STEP_SECONDS.observe(pace.last_seconds)
    metrics.TOKENS.inc(step.tokens)
    metrics.show(step=standing.step, total_steps=standing.total_steps, epoch=epoch, loss=step.loss, **figures)
    if run.group.leads:
        logs.metric(
            "step", f"step {standing.step} of {standing.total_steps}: loss {step.loss:.4f}",
            step=standing.step, epoch=epoch, loss=step.loss, **figures,
        )  # fmt: skip
    run.watchdog.step(
        pace.step_seconds,
        loss_sum=step.loss_sum,
        loss_count=step.count,
        step=standing.step,
        epoch=epoch,
        checkpoint_step=run.checkpoints.durable_step,
        **figures,
    )


def _evaluate_between(run: Run, batching: Batching) -> None:
    """Measure the loss after a step, before the next one, also when this process has only resumed there."""
    standing = run.state.standing.evaluated(evaluate(run, batching))
    is_best = run.exports_best and standing.best_step == standing.step
    if is_best and run.saves:
        with _saving(run):
            if not run.checkpoints.save_best(standing.step, run.state.snapshot):
                standing = run.state.standing.evaluated(None)
    run.state.standing = standing
    run.watchdog.heartbeat(activity=Activity.TRAINING)
