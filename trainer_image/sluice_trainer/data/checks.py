"""What is wrong with a job's model, settings and rows together, each with what to do about it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sluice_api.dataset import Dataset, DatasetFormat
from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.quantity import amount, readable
from sluice_api.reasons import Reason
from sluice_api.sources import is_object
from sluice_api.stages import StageSpec
from sluice_api.training import ExportedCheckpoint, Method, Training
from sluice_trainer.base_model import BaseModel
from sluice_trainer.data.collect import Collected
from sluice_trainer.data.fetch import dataset_name
from sluice_trainer.data.near_misses import meant, quoted
from sluice_trainer.data.source import Source
from sluice_trainer.errors import StageError
from sluice_trainer.plan import warmup_steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layers_of(base: BaseModel) -> "PreTrainedModel":
    """The model's layers, if transformers knows such a model."""
    from sluice_trainer.train.weights.model import without_weights

    try:
        return without_weights(base)
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            Reason.MODEL_INVALID,
            f"model.uri {base.uri}: transformers can't make a language model of its config.json: {error}. "
            "Restore it, or choose another model.",
        ) from error


def check_loss(base: BaseModel, model: "PreTrainedModel") -> None:
    """Refuse a mixture of experts that adds its routers' loss. Train itself finds any other loss."""
    config = model.config.get_text_config()
    if getattr(config, "output_router_logits", False) and getattr(config, "router_aux_loss_coef", 0):
        raise StageError(
            Reason.MODEL_INVALID,
            f"model.uri {base.uri}: its loss is more than the cross entropy of its logits, and that is what is "
            "trained. Turn its other loss off in config.json (output_router_logits: false), or choose a model that "
            "predicts the next token and nothing else.",
        )


def check_room(model: "PreTrainedModel", spec: FineTuneJobSpec) -> None:
    """Refuse to train all weights where the copy that a checkpoint is written from would not fit: the kernel would end
    the process, at its first save and at each one after it. The kubelet does so where it fills the pod's disk."""
    from sluice_trainer.train.trials.memory import COPY_BYTES_PER_WEIGHT

    weights, resources = model.num_parameters(), spec.resources
    needed = COPY_BYTES_PER_WEIGHT * weights
    if is_object(spec.output.uri) and amount("ephemeral-storage", resources.ephemeral_storage) < needed:
        raise StageError(
            Reason.OUTPUT_NOT_WRITABLE,
            f"resources.ephemeralStorage {resources.ephemeral_storage} does not hold a checkpoint of all {weights:,} "
            f"weights, which is on the pod's disk before it is in {spec.output.uri}: that takes "
            f"{readable('ephemeral-storage', needed)}. Raise it, or use a pvc:// address or method LoRA.",
        )
    if amount("memory", resources.memory) < needed:
        raise StageError(
            Reason.OUT_OF_MEMORY,
            f"resources.memory {resources.memory} does not hold a checkpoint of all {weights:,} weights: that takes "
            f"{readable('memory', needed)} beside what the process needs itself. Raise it, or use method LoRA.",
        )


def check_tokens(base: BaseModel, model: "PreTrainedModel", collected: Collected, *, trained: bool) -> None:
    """Refuse rows with tokens that have no trained embedding."""
    from sluice_trainer.data.embeddings import check_embeddings

    used = np.flatnonzero(collected.used).tolist()
    check_embeddings(base, model, collected.maker.added_tokens, used, trained=trained)


def check_best(training: Training, held_out_rows: int, dataset: str) -> None:
    """Refuse to export the best checkpoint where nothing tells which that is."""
    if training.exported_checkpoint is not ExportedCheckpoint.BEST:
        return
    otherwise = "or set training.exportedCheckpoint: Last."
    if training.evaluate_every_steps is None:
        raise StageError(
            Reason.DATASET_INVALID,
            f"Which checkpoint is best is measured: set training.evaluateEverySteps, {otherwise}",
        )
    if held_out_rows == 0:
        raise StageError(
            Reason.DATASET_INVALID,
            f"{dataset}: no row is held out, so no checkpoint can be the best. Raise dataset.validationSplit, add "
            f"rows, {otherwise}",
        )


def check_warmup(training: Training, steps: int) -> None:
    """Refuse a warm-up that training ends before: its learning rate would never be what was asked for."""
    if warmup_steps(steps, training) >= steps:
        raise StageError(
            Reason.DATASET_INVALID,
            f"training.warmupSteps {training.warmup_steps} is not less than the {steps} steps of this training, so its "
            "learning rate would never be at its peak. Lower it, leave it out, or raise training.epochs.",
        )


def check_rows(
    stage: StageSpec, base: BaseModel, model: "PreTrainedModel", collected: Collected, sources: Sequence[Source]
) -> None:
    """Refuse rows that can't be trained on, or not by this method.

    Raises:
        StageError: DatasetInvalid, DatasetEmpty or ModelInvalid.
    """
    findings, whole = collected.findings, stage.spec.method is Method.FULL
    dropped = sum(step.dropped_rows for step in collected.tally.reports())
    is_any_left = bool(collected.firsts or dropped or findings.overlong_rows)
    findings.check(stage.spec.dataset.on_bad_row, is_any_left=is_any_left)
    check_fields(stage.spec.dataset, collected)
    check_not_empty(collected)
    check_tokens(base, model, collected, trained=whole)
    decided = [source for source in sources if source.format.form is not DatasetFormat.AUTO]  # others have no rows
    says_preference = {source.format.form is DatasetFormat.PREFERENCE: source.name for source in decided}
    if len(says_preference) == 2:
        raise StageError(
            Reason.DATASET_INVALID,
            f"{says_preference[True]} says which answers are preferred, and {says_preference[False]} does not: they "
            "have different losses, and can't be mixed. Train on the one in one job, and on the other in another.",
        )
    if whole and True in says_preference:
        raise StageError(
            Reason.DATASET_INVALID,
            f"{findings.dataset} says which answers are preferred, which is trained by comparing the model with itself "
            "without its adapter. Set method: LoRA or QLoRA.",
        )


def check_training_rows(rows: int, dataset: str) -> None:
    """Refuse a dataset that leaves nothing to train on: all rows are held out, or have the weight 0."""
    if not rows:
        raise StageError(
            Reason.DATASET_EMPTY,
            f"{dataset}: no row is left to train on: those that are left are held out (dataset.validation) or of "
            "weight 0; a deduplicate drops rows that equal a held-out one. Give other rows, or raise the weight.",
        )


def check_not_empty(collected: Collected) -> None:
    """Refuse a dataset of which nothing is left."""
    findings = collected.findings
    if collected.firsts:
        return
    if findings.overlong_rows and not findings.refused:
        raise StageError(
            Reason.DATASET_EMPTY,
            f"{findings.dataset}: all {findings.overlong_rows} rows are longer than training.maxSequenceLength, and "
            "training.overlongRows is Drop. Raise the one, or use Truncate or Split.",
        )
    steps = collected.tally.reports()
    if dropped := sum(step.dropped_rows for step in steps):
        reasons = [f"{drop.rows} for {drop.why}" for step in steps for drop in step.dropped]
        why = ", ".join(reasons[:3])
        raise StageError(
            Reason.DATASET_EMPTY,
            f"{findings.dataset}: no row is left: dataset.steps dropped {dropped} ({why}) and "
            f"{findings.refused} were refused. Change the steps, or add rows.",
        )
    if findings.refused == 0:
        raise StageError(
            Reason.DATASET_EMPTY, f"{findings.dataset} has no rows. Write at least one, such as one JSON object a line."
        )


def check_fields(dataset: Dataset, collected: Collected) -> None:
    """Refuse dataset.fields that name a field which no row has: what is meant would not be learnt."""
    has = sorted(set().union(*collected.unread.values()))
    for index, files in enumerate(dataset.all_files):
        names = files.fields.model_dump(exclude_none=True)
        missing = [theirs for ours, theirs in names.items() if ours not in collected.named.get(index, names)]
        if missing:
            raise StageError(
                Reason.DATASET_INVALID,
                f"{dataset_name(files.uri or '')}: no row has {quoted(missing)}, which dataset.fields names. "
                f"{meant(missing, has)}.",
            )
