"""The Train stage, from top to bottom.

A loop of our own rather than transformers' Trainer: saving within two seconds of SIGTERM and resuming to the very
same bits would override most of it.
"""

import math
import resource
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from sluice_api.reasons import Reason
from sluice_api.reports import Activity
from sluice_api.stages import StageSpec, TrainResult
from sluice_api.training import ExportedCheckpoint, Training
from sluice_trainer import base_model, failpoints, logs, metrics, plan, prepared
from sluice_trainer.errors import StageError
from sluice_trainer.places import work
from sluice_trainer.prepared import Prepared
from sluice_trainer.ranks import Rank
from sluice_trainer.report import Reporter
from sluice_trainer.signals import StopSignal
from sluice_trainer.train.batches import MicroBatch, all_tokens, batches_of
from sluice_trainer.train.budget import batching_for
from sluice_trainer.train.checkpoint import Checkpoints
from sluice_trainer.train.evaluate import evaluate
from sluice_trainer.train.group import Group, joined
from sluice_trainer.train.head import prove
from sluice_trainer.train.model import Model, compile_layers, load, trainable
from sluice_trainer.train.objective import Objective, objective_of
from sluice_trainer.train.pace import Pace
from sluice_trainer.train.packing import Batching
from sluice_trainer.train.randomness import seed_all
from sluice_trainer.train.state import Standing, TrainingState
from sluice_trainer.train.watchdog import Watchdog


@dataclass(frozen=True)
class Run:
    """One attempt: what all of its parts work on."""

    training: Training
    data: Prepared
    group: Group
    model: Model
    objective: Objective
    state: TrainingState
    checkpoints: Checkpoints
    reporter: Reporter

    @property
    def exports_best(self) -> bool:
        """The best checkpoint is the result, not the last."""
        return self.training.exported_checkpoint is ExportedCheckpoint.BEST

    @property
    def rows(self) -> int:
        """Rows to train on."""
        return len(self.data.training)


@dataclass(frozen=True)
class Step:
    """What one optimizer step came to."""

    loss_sum: float
    count: int
    """What the loss is a mean over: learnt tokens, or pairs."""
    tokens: int
    learning_rate: float
    gradient_norm: float
    """Before it was clipped."""

    @property
    def loss(self) -> float:
        """The mean, in nats."""
        return self.loss_sum / self.count


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
    with joined(rank, reporter, stop) as group:
        return _trained(_load(stage, group, checkpoints, reporter), stop)


def _trained(run: Run, stop: StopSignal) -> TrainResult:
    checkpoints = run.checkpoints
    resumed_from = _resume(run)
    batching = _decide_batching(run)
    if run.state.standing.evaluation_loss_before is None:
        before = _evaluate(run, batching)
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
        checkpoints.save(run.state.last_snapshot)
        return result()

    if run.group.leads:
        stop.saved_by(save_last)
    with Watchdog(run.reporter) as watchdog:
        _train_to_the_end(run, batching, watchdog)
    loss = _evaluate(run, batching)
    last = run.state.standing.evaluated(loss)
    if run.exports_best:
        complete = result(exported_step=last.best_step, evaluation_loss_after=last.best_loss)
    else:
        complete = result(exported_step=last.step, evaluation_loss_after=loss)
    if run.group.leads:
        checkpoints.complete(complete)
    return complete


def _train_to_the_end(run: Run, batching: Batching, watchdog: Watchdog) -> None:
    """All steps that are left, with a durable checkpoint every so often and after the last one."""
    state, pace, due = run.state, Pace(), False
    total = state.standing.total_steps
    run.reporter.update(activity=Activity.TRAINING)
    while state.standing.step < total:
        if _is_due(run.training.evaluate_every_steps, state.standing.step) and not state.standing.is_evaluated:
            with watchdog.paused():
                _evaluate_between(run, batching)
        pace.start()
        step = _forward_and_backward(run, batching)
        _check_finite(step, state.standing)
        for group in state.optimizer.param_groups:
            group["lr"] = step.learning_rate
        failpoints.reached("update-begins")
        with state.updating():
            state.optimizer.step()
            failpoints.reached("update-half-done")
            state.standing = _next_standing(run, step)
        failpoints.reached("update-done")
        state.optimizer.zero_grad()
        pace.step(step.tokens)
        watchdog.step(pace.step_seconds)
        _report(run, step, pace)
        due = due or _is_due(run.training.checkpoint_every_steps, state.standing.step)
        if due and run.group.leads and state.standing.step < total:
            with metrics.SAVE_SECONDS.time():
                due = not run.checkpoints.save_behind(state.snapshot)
    if run.group.leads:
        with metrics.SAVE_SECONDS.time():
            saved = run.checkpoints.save(state.snapshot)
        run.reporter.update(checkpoint_step=saved)


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _forward_and_backward(run: Run, batching: Batching) -> Step:
    """Clipped gradients of the mean loss over all that the step counts, however many share it, in whatever pieces."""
    step, group = run.state.standing.step, run.group
    rows = plan.rows_of_step(step, run.rows, run.training).tolist()
    count = run.objective.count(run.data.training, rows)
    loss_sum = torch.zeros((), device=group.device)
    for place, batch in batches_of(run.data.training, rows, batching, group.rank, group.device):
        seed_all(run.training.seed, step, place)
        failpoints.reached("forward")
        loss = run.objective.summed_loss(run.model, batch)
        failpoints.reached("backward")
        (loss / count).backward()
        loss_sum += loss.detach()
    weights = list(run.state.weights.values())
    group.sum_gradients_(weights, loss_sum)
    norm = clip_grad_norm_(weights, float(run.training.max_gradient_norm) or math.inf)
    tokens = all_tokens(run.data.training, rows)
    return Step(loss_sum.item(), count, tokens, run.state.standing.learning_rate, norm.item())


def _check_finite(step: Step, standing: Standing) -> None:
    """Stop before a step that would ruin the adapter; the last checkpoint stays good."""
    for what, value in (("loss", step.loss), ("gradient norm", step.gradient_norm)):
        if not math.isfinite(value):
            raise StageError(
                Reason.LOSS_NOT_FINITE,
                f"The {what} of step {standing.step + 1} of {standing.total_steps} is {value} at learning rate "
                f"{standing.learning_rate:g}. Lower training.learningRate; if it is low already, set training.dtype: "
                "float32, or look for broken rows.",
            )


def _next_standing(run: Run, step: Step) -> Standing:
    standing = run.state.standing
    done = standing.step + 1
    epoch, row = plan.position(done, run.rows, run.training)
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
    epoch = round(standing.step / plan.steps_per_epoch(run.rows, run.training), 4)
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
    metrics.show(step=standing.step, loss=step.loss, **figures)
    if run.group.leads:
        logs.metric(
            "step", f"step {standing.step} of {standing.total_steps}: loss {step.loss:.4f}",
            step=standing.step, epoch=epoch, loss=step.loss, **figures,
        )  # fmt: skip
    run.reporter.update(
        loss_sum=step.loss_sum,
        loss_count=step.count,
        step=standing.step,
        epoch=epoch,
        step_seconds=round(pace.step_seconds, 4),
        checkpoint_step=run.checkpoints.durable_step,
        **figures,
    )


def _evaluate(run: Run, batching: Batching) -> float | None:
    run.reporter.update(activity=Activity.EVALUATING)
    loss = evaluate(run.model, run.data.validation, batching, run.group, run.objective)
    if loss is not None:
        metrics.show(evaluation_loss=loss)
        run.reporter.update(evaluation_loss=loss)
    return loss


def _evaluate_between(run: Run, batching: Batching) -> None:
    """Measure the loss after a step, before the next one, also when this process has only resumed there."""
    standing = run.state.standing.evaluated(_evaluate(run, batching))
    is_best = run.exports_best and standing.best_step == standing.step
    if is_best and run.group.leads and not run.checkpoints.save_best(run.state.snapshot):
        standing = run.state.standing.evaluated(None)
    run.state.standing = standing
    run.reporter.update(activity=Activity.TRAINING)


def _load(stage: StageSpec, group: Group, checkpoints: Checkpoints, reporter: Reporter) -> Run:
    """Rows, model, a fresh adapter and its optimizer: the same bits in every attempt, from the seed."""
    reporter.update(activity=Activity.LOADING_MODEL)
    training = stage.spec.training
    data = prepared.load(work(stage) / "prepared", plan.plan_digest(stage))
    base = base_model.locate(stage.spec.model.uri, data.manifest.base_model_revision)
    base_model.require_same(base, data.manifest.base_model_fingerprint)
    seed_all(training.seed)
    torch.use_deterministic_algorithms(training.deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs, decides nothing
    logs.info("device", device=str(group.device), threads=torch.get_num_threads())
    failpoints.reached("model-loads")
    model = load(base, stage.spec, group.device)
    failpoints.reached("model-loaded")
    row = MicroBatch.of([data.training[0]], group.device)
    prove(model, row.input_ids, row.learnt)
    if training.compile:
        compile_layers(model)
    model.train()
    weights = trainable(model)
    optimizer = torch.optim.AdamW(
        weights.values(),
        betas=(float(training.adam_beta1), float(training.adam_beta2)),
        eps=float(training.adam_epsilon),
        weight_decay=float(training.weight_decay),
        fused=True,
    )
    total = plan.total_steps(len(data.training), training)
    standing = Standing(total_steps=total, learning_rate=plan.learning_rate(0, total, training))
    state = TrainingState(weights, optimizer, standing)
    objective = objective_of(data.manifest.row_format, training)
    return Run(training, data, group, model, objective, state, checkpoints, reporter)


def _resume(run: Run) -> int | None:
    """Go on from the newest whole checkpoint that the leader finds; returns its step, None in the others."""
    saved = run.checkpoints.newest() if run.group.leads else None
    if saved is not None:
        run.state.restore(saved)
        best = saved.standing.best_step if run.exports_best else None
        if best is not None and not run.checkpoints.keep(best):
            run.state.standing = saved.standing.model_copy(update={"best_step": None, "best_loss": None})
    run.state.take_leaders(run.group)
    standing = run.state.standing
    resumed_from = standing.step if saved else None
    logs.info("begin", step=standing.step, total=standing.total_steps, resumed_from=resumed_from)
    run.reporter.update(step=standing.step, total_steps=standing.total_steps, checkpoint_step=resumed_from)
    return resumed_from


def _decide_batching(run: Run) -> Batching:
    """How rows go into micro-batches, as the training began with if that still fits."""
    standing = run.state.standing
    batching = batching_for(run.model, run.data.training, run.training, run.group, standing.micro_batch_tokens)
    run.state.standing = standing.model_copy(update={"micro_batch_tokens": batching.tokens})
    return batching
