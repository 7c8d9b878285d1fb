"""The Train stage, from top to bottom.

A loop of our own rather than transformers' Trainer: saving within two seconds of SIGTERM and resuming to the very
same bits would override most of it.
"""

import math
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch.nn.utils import clip_grad_norm_

from sluice_api.reports import Activity
from sluice_api.stages import StageSpec, TrainResult
from sluice_api.training import Training
from sluice_trainer import base_model, failpoints, logs, metrics, plan, prepared
from sluice_trainer.places import work
from sluice_trainer.prepared import Prepared
from sluice_trainer.ranks import Rank
from sluice_trainer.report import Reporter
from sluice_trainer.signals import StopSignal
from sluice_trainer.train.batches import MicroBatch, all_tokens, batches_of, learnt_tokens, summed_loss
from sluice_trainer.train.budget import batching_for
from sluice_trainer.train.checkpoint import Checkpoints
from sluice_trainer.train.evaluate import evaluate
from sluice_trainer.train.finite import gradient_error, loss_error
from sluice_trainer.train.group import Group, joined
from sluice_trainer.train.head import prove
from sluice_trainer.train.model import load_base, trainable, with_adapter
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
    model: PeftModel
    state: TrainingState
    checkpoints: Checkpoints
    reporter: Reporter

    @property
    def rows(self) -> int:
        """Rows to train on."""
        return len(self.data.training)


@dataclass(frozen=True)
class Step:
    """What one optimizer step came to."""

    loss_sum: float
    learnt_tokens: int
    tokens: int

    @property
    def loss(self) -> float:
        """Mean over the learnt tokens, in nats."""
        return self.loss_sum / self.learnt_tokens


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

    def result(evaluation_loss_after: float | None = None) -> TrainResult:
        standing = run.state.standing
        return TrainResult(
            step=standing.step,
            total_steps=standing.total_steps,
            checkpoint_step=checkpoints.durable_step,
            resumed_from=resumed_from,
            evaluation_loss_before=standing.evaluation_loss_before,
            evaluation_loss_after=evaluation_loss_after,
        )

    def save_last() -> TrainResult:
        checkpoints.save(run.state.last_snapshot)
        return result()

    if run.group.leads:
        stop.saved_by(save_last)
    with Watchdog(run.reporter) as watchdog:
        _train_to_the_end(run, batching, watchdog)
    complete = result(_evaluate(run, batching))
    if run.group.leads:
        checkpoints.complete(complete)
    return complete


def _train_to_the_end(run: Run, batching: Batching, watchdog: Watchdog) -> None:
    """All steps that are left, with a durable checkpoint every so often and after the last one."""
    state, pace, due = run.state, Pace(), False
    total = state.standing.total_steps
    largest_gradient = float(run.training.max_gradient_norm) or math.inf
    run.reporter.update(activity=Activity.TRAINING)
    while state.standing.step < total:
        pace.start()
        step = _forward_and_backward(run, batching)
        _check_finite(run, step, clip_grad_norm_(state.weights.values(), largest_gradient).item())
        for group in state.optimizer.param_groups:
            group["lr"] = state.standing.learning_rate
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
        if _is_due(run.training.evaluate_every_steps, state.standing.step) and state.standing.step < total:
            with watchdog.paused():
                _evaluate(run, batching)
            run.reporter.update(activity=Activity.TRAINING)
    if run.group.leads:
        with metrics.SAVE_SECONDS.time():
            saved = run.checkpoints.save(state.snapshot)
        run.reporter.update(checkpoint_step=saved)


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _forward_and_backward(run: Run, batching: Batching) -> Step:
    """Gradients of the mean loss over all learnt tokens of the step, however many share it, in whatever pieces."""
    step, group = run.state.standing.step, run.group
    rows = plan.rows_of_step(step, run.rows, run.training).tolist()
    learnt = learnt_tokens(run.data.training, rows)
    loss_sum = torch.zeros((), device=group.device)
    for place, batch in batches_of(run.data.training, rows, batching, group.rank, group.device):
        seed_all(run.training.seed, step, place)
        failpoints.reached("forward")
        loss = summed_loss(run.model, batch)
        failpoints.reached("backward")
        (loss / learnt).backward()
        loss_sum += loss.detach()
    group.sum_gradients_(list(run.state.weights.values()), loss_sum)
    return Step(loss_sum.item(), learnt, all_tokens(run.data.training, rows))


def _check_finite(run: Run, step: Step, gradient_norm: float) -> None:
    """Stop before a step that would ruin the adapter; the last checkpoint stays good."""
    if math.isfinite(step.loss) and math.isfinite(gradient_norm):
        return
    standing, data = run.state.standing, run.data.training
    rows = plan.rows_of_step(standing.step, run.rows, run.training).tolist()
    at = f"of step {standing.step + 1} of {standing.total_steps}"
    rate = f"at learning rate {standing.learning_rate:g}."
    if math.isfinite(step.loss):
        raise gradient_error(f"The gradient norm {at} is {gradient_norm} {rate}", data, rows)
    raise loss_error(f"The loss {at} is {step.loss} {rate}", run.model, data, rows, run.group)


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
    metrics.STEP_SECONDS.observe(pace.last_seconds)
    metrics.TOKENS.inc(step.tokens)
    metrics.STEPS.set(standing.step)
    metrics.LOSS.set(step.loss)
    if run.group.leads:
        logs.info("step", step=standing.step, loss=step.loss)
    run.reporter.update(
        loss_sum=step.loss_sum,
        loss_tokens=step.learnt_tokens,
        step=standing.step,
        epoch=round(standing.step / plan.steps_per_epoch(run.rows, run.training), 4),
        tokens_per_second=round(pace.tokens_per_second, 1),
        step_seconds=round(pace.step_seconds, 4),
        seconds_left=pace.seconds_left(standing.total_steps - standing.step),
        checkpoint_step=run.checkpoints.durable_step,
        gpu_memory_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    )


def _evaluate(run: Run, batching: Batching) -> float | None:
    run.reporter.update(activity=Activity.EVALUATING)
    loss = evaluate(run.model, run.data.validation, batching, run.group, run.state.standing.step)
    if loss is not None:
        metrics.EVALUATION_LOSS.set(loss)
        run.reporter.update(evaluation_loss=loss)
    return loss


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
    model = with_adapter(load_base(base, training), stage.spec).to(group.device)
    failpoints.reached("model-loaded")
    row = MicroBatch.of([data.training[0]], group.device)
    prove(model, row.input_ids, row.learnt)
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
    return Run(training, data, group, model, state, checkpoints, reporter)


def _resume(run: Run) -> int | None:
    """Go on from the newest whole checkpoint that the leader finds; returns its step, None in the others."""
    saved = run.checkpoints.newest() if run.group.leads else None
    if saved is not None:
        run.state.restore(saved)
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
