"""One attempt: what it works on, how that is loaded, and how it resumes where the last attempt was."""

from dataclasses import dataclass, replace

import torch

from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.reasons import Reason
from sluice_api.reports import Activity
from sluice_api.stages import StageSpec
from sluice_api.training import ExportedCheckpoint, Training
from sluice_trainer import base_model, failpoints, logs, pickled, plan, prepared
from sluice_trainer.base_model import BaseModel
from sluice_trainer.errors import StageError
from sluice_trainer.prepared import Prepared
from sluice_trainer.report import Reporter
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.checkpoints.checkpoint import Checkpoints
from sluice_trainer.train.checkpoints.sharded import ShardedSaver
from sluice_trainer.train.checkpoints.state import WEIGHT, Progress, Snapshot, TrainingState
from sluice_trainer.train.checkpoints.tensor_files import WHOLE, Shard
from sluice_trainer.train.group import Group
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.objective import Objective, Preference, objective_of
from sluice_trainer.train.packing import Batching
from sluice_trainer.train.randomness import seed_all
from sluice_trainer.train.trials.budget import batching_for
from sluice_trainer.train.trials.fused_loss import verify_fused_loss
from sluice_trainer.train.watchdog import Watchdog
from sluice_trainer.train.weights import sharding
from sluice_trainer.train.weights.model import (
    Model,
    autocast_dtype,
    compile_layers,
    has_bfloat16,
    load,
    turn_dropout_off,
)
from sluice_trainer.train.weights.trained import TrainedWeights


@dataclass(frozen=True)
class Run:
    """All that one attempt works on."""

    training: Training
    data: Prepared
    steps: plan.Steps
    group: Group
    token_loss: TokenLoss
    objective: Objective
    weights: TrainedWeights
    state: TrainingState
    checkpoints: Checkpoints
    reporter: Reporter
    watchdog: Watchdog

    @property
    def model(self) -> Model:
        """The model that is trained."""
        return self.token_loss.model

    @property
    def saves(self) -> bool:
        """Whether this process writes checkpoints: the leader does, or every process if the model is sharded."""
        return self.group.leads or self.weights.are_sharded

    @property
    def exports_best(self) -> bool:
        """Whether the best checkpoint is the result, not the last one."""
        return self.training.exported_checkpoint is ExportedCheckpoint.BEST


def load_run(stage: StageSpec, group: Group, checkpoints: Checkpoints, reporter: Reporter, watchdog: Watchdog) -> Run:
    """Load rows, model, a fresh adapter and its optimizer: the same bits in every attempt, from the seed."""
    watchdog.heartbeat(activity=Activity.LOADING_MODEL)
    training = stage.spec.training
    data = prepared.load(checkpoints.work.fetch(checkpoints.work.folder / "prepared"), stage)
    base = pickled.locate(stage, data.manifest.base_model_revision)
    base_model.require_same(base, data.manifest.base_model_fingerprint)
    seed_all(training.seed)
    torch.use_deterministic_algorithms(training.deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs, decides nothing
    logs.info("device", device=str(group.device), threads=torch.get_num_threads())
    failpoints.reached("model-loads")
    spec = _with_supported_dtype(stage.spec, group)
    model, group = _load_model(base, spec, group)
    failpoints.reached("model-loaded")
    row = MicroBatch.of([data.training[0]], group.device)
    token_loss = verify_fused_loss(TokenLoss(model, autocast_dtype(spec)), row.input_ids, row.loss_mask)
    if training.compile:
        compile_layers(model)
    objective = objective_of(data.manifest.row_format, training)
    if isinstance(objective, Preference):
        turn_dropout_off(model)
    model.train()
    weights = TrainedWeights(model, group)
    optimizer = torch.optim.AdamW(
        weights.tensors.values(),
        betas=(float(training.adam_beta1), float(training.adam_beta2)),
        eps=float(training.adam_epsilon),
        weight_decay=float(training.weight_decay),
        fused=True,
    )
    steps = plan.Steps(data.training.lengths, training)
    progress = Progress(total_steps=steps.total, learning_rate=plan.learning_rate(0, steps.total, training))
    if weights.are_sharded:
        checkpoints.sharded = ShardedSaver(group.rank, group.shared_store, checkpoints.work)
    state = TrainingState(weights.tensors, optimizer, progress)
    return Run(training, data, steps, group, token_loss, objective, weights, state, checkpoints, reporter, watchdog)


def _load_model(base: BaseModel, spec: FineTuneJobSpec, group: Group) -> tuple[Model, Group]:
    """Load the model to this process's device, whole or sharded. Returns it, and the group with shares_model set."""
    if not sharding.is_wanted(spec, base, group):
        return load(base, spec, group.device), group
    mesh = sharding.mesh_of(group)
    with group.one_at_a_time():  # until it is sharded, it is whole in the pod's memory
        model = load(base, spec, torch.device("cpu"))
        sharding.shard(model, group, mesh, spec)
    return model, replace(group, shares_model=True)


def _with_supported_dtype(spec: FineTuneJobSpec, group: Group) -> FineTuneJobSpec:
    """The job with dtype float32 if some machine of the group does not support bfloat16, and as it is otherwise."""
    if spec.training.dtype == "float32" or group.all_agree(has_bfloat16(group.device)):
        return spec
    logs.warning("no bfloat16 here", computes_in="float32")
    training = spec.training.model_copy(update={"dtype": "float32"})
    return spec.model_copy(update={"training": training})


def resume(run: Run) -> int | None:
    """Go on from the newest whole checkpoint that the leader finds.

    Returns:
        Its step; None if there is none, and in processes that have the leader's state by a broadcast.
    """
    group, sharded = run.group, run.weights.are_sharded
    step = run.checkpoints.newest_step() if group.leads else None
    if sharded:
        text = group.broadcast_text("checkpoint", "" if step is None else str(step))
        step = int(text) if text else None
    if step is not None:
        saved = run.checkpoints.read(step, Shard(group.rank.number, group.rank.size) if sharded else WHOLE)
        _require_same_weights(saved, run.state)
        run.state.restore(saved)
        best = saved.progress.best_step if run.exports_best and group.leads else None
        if best is not None and not run.checkpoints.keep(best):
            run.state.progress = saved.progress.model_copy(update={"best_step": None, "best_loss": None})
    run.state.allocate_moments()
    run.state.broadcast_from_leader(group, position_only=sharded)
    progress = run.state.progress
    resumed_from = progress.step if step is not None else None
    logs.info("begin", step=progress.step, total=progress.total_steps, resumed_from=resumed_from)
    run.reporter.update(step=progress.step, total_steps=progress.total_steps, checkpoint_step=resumed_from)
    return resumed_from


def _require_same_weights(saved: Snapshot, state: TrainingState) -> None:
    """Refuse a checkpoint that has other weights than the model trains: another version chose other layers."""
    theirs = {name.removeprefix(WEIGHT) for name in saved.tensors if name.startswith(WEIGHT)}
    if differ := sorted(theirs ^ state.weights.keys()):
        raise StageError(
            Reason.CHECKPOINT_INVALID,
            f"The checkpoint of step {saved.progress.step} trains other layers than this version of the trainer does, "
            f"such as {differ[0]}. {Reason.CHECKPOINT_INVALID.next_step}",
        )


def decide_batching(run: Run) -> Batching:
    """Decide how rows go into micro-batches: as in the first attempt, if that still fits into memory."""
    progress = run.state.progress
    batching = batching_for(run.token_loss, run.data.training, run.training, run.group, progress.micro_batch_tokens)
    run.state.progress = progress.model_copy(update={"micro_batch_tokens": batching.tokens})
    return batching
