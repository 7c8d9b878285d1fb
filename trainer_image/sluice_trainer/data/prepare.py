"""The Prepare stage, from top to bottom: everything that can be wrong with the input is found here, without a GPU."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sluice_api.artifacts import MANIFEST
from sluice_api.finetunejob import DatasetFormat, JobResources
from sluice_api.quantity import amount, readable
from sluice_api.reasons import Reason
from sluice_api.reports import Activity
from sluice_api.stages import PrepareResult, StageSpec
from sluice_api.training import ExportedCheckpoint, Lora, Method, Training
from sluice_trainer import base_model, durable, logs, paths, prepared
from sluice_trainer.base_model import BaseModel
from sluice_trainer.data.fetch import dataset_file, dataset_name
from sluice_trainer.data.rows import Findings, read_rows
from sluice_trainer.data.split import held_out
from sluice_trainer.errors import StageError
from sluice_trainer.plan import Steps, plan_digest, settings_of
from sluice_trainer.prepared import PreparedManifest, TokenRow, TokenRows
from sluice_trainer.report import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare(stage: StageSpec, reporter: Reporter) -> PrepareResult:
    """Check model, output and every row; leave tokenised rows in <work>/prepared/.

    Raises:
        StageError: something is wrong with the input, or with the output's claim.
    """
    spec = stage.spec
    folder = paths.make_work_folder(stage) / "prepared"
    plan = plan_digest(stage)
    if (earlier := prepared.finished(folder, plan)) is not None:
        return earlier.result
    reporter.update(activity=Activity.PREPARING)
    file = dataset_file(spec.dataset.uri)
    base = base_model.locate(spec.model.uri)

    from sluice_trainer.data.tokenise import Tokeniser

    model = _without_weights(base)
    _check_loss(base, model)
    whole = spec.method is Method.FULL
    if whole:
        _check_memory(model, spec.resources)
    else:
        _check_adapter(model, spec.lora)
    tokeniser = Tokeniser(base, _longest(stage, base), spec.training.overlong_rows)
    findings = Findings(dataset_name(spec.dataset.uri), spec.dataset.format)
    rows = list(tokeniser.tokenise(read_rows(file, findings), findings))
    findings.check(spec.dataset.on_bad_row)
    _check_not_empty(rows, findings)
    _check_tokens(base, model, tokeniser.added_tokens, rows, trained=whole)
    if whole and findings.row_format is DatasetFormat.PREFERENCE:
        raise StageError(
            Reason.DATASET_INVALID,
            f"{findings.dataset} says which answers are preferred, which is trained by comparing the model with itself "
            "without its adapter. Set method: LoRA or QLoRA.",
        )

    share = float(spec.dataset.validation_split.removesuffix("%")) / 100
    is_held_out = held_out(rows, share, spec.training.seed)
    training, validation = (
        TokenRows.of(part for row, out in zip(rows, is_held_out, strict=True) if out is half for part in row)
        for half in (False, True)
    )
    _check_best(spec.training, len(validation), findings.dataset)
    result = PrepareResult(
        rows=len(training),
        validation_rows=len(validation),
        refused_rows=findings.refused,
        overlong_rows=findings.overlong_rows,
        tokens=len(training.input_ids),
        loss_tokens=int(training.loss_mask.sum()),
        longest_row=max(len(part.input_ids) for row in rows for part in row),
        steps=Steps(training.lengths, spec.training).total,
        refused=findings.lines(),
    )
    with paths.writing(stage), durable.new_folder(folder) as unfinished:
        prepared.write_rows(unfinished, training, validation)
        manifest = PreparedManifest(
            plan=plan,
            files=durable.digests(unfinished),
            result=result,
            row_format=findings.row_format,
            chat_template=tokeniser.chat_template,
            base_model_uri=base.uri,
            base_model_revision=base.revision,
            base_model_fingerprint=base.fingerprint,
            seed=spec.training.seed,
            settings=settings_of(stage),
        )
        if spec.resume_from is not None:
            from sluice_trainer.train.checkpoints.resume_from import copy_checkpoint

            copy_checkpoint(stage, manifest)
        (unfinished / MANIFEST).write_text(manifest.to_json())
    durable.remove_unfinished(folder.parent)
    return result


def _longest(stage: StageSpec, base: BaseModel) -> int:
    """The longest row in tokens: what the user asked for, or as many positions as the model knows."""
    asked = stage.spec.training.max_sequence_length
    if base.longest_sequence is None or asked <= base.longest_sequence:
        return asked
    logs.warning("maxSequenceLength is more than the model knows", asked=asked, used=base.longest_sequence)
    return base.longest_sequence


def _without_weights(base: BaseModel) -> "PreTrainedModel":
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


def _check_loss(base: BaseModel, model: "PreTrainedModel") -> None:
    """Refuse a mixture of experts that adds its routers' loss. Train itself finds any other loss."""
    config = model.config.get_text_config()
    if getattr(config, "output_router_logits", False) and getattr(config, "router_aux_loss_coef", 0):
        raise StageError(
            Reason.MODEL_INVALID,
            f"model.uri {base.uri}: its loss is more than the cross entropy of its logits, and that is what is "
            "trained. Turn its other loss off in config.json (output_router_logits: false), or choose a model that "
            "predicts the next token and nothing else.",
        )


def _check_adapter(model: "PreTrainedModel", lora: Lora) -> None:
    """Refuse an adapter that this model can't have."""
    from sluice_trainer.layers import check_rank, linear_layers, target_layers

    check_rank(model, target_layers(linear_layers(model), lora.target_modules), lora)


def _check_memory(model: "PreTrainedModel", resources: JobResources) -> None:
    """Refuse to train all weights where the copy that a checkpoint is written from would not fit: the kernel would end
    the process, at its first save and at each one after it."""
    from sluice_trainer.train.trials.memory import COPY_BYTES_PER_WEIGHT

    weights = model.num_parameters()
    needed = COPY_BYTES_PER_WEIGHT * weights
    if amount("memory", resources.memory) < needed:
        raise StageError(
            Reason.OUT_OF_MEMORY,
            f"resources.memory {resources.memory} does not hold a checkpoint of all {weights:,} weights: that takes "
            f"{readable('memory', needed)} beside what the process needs itself. Raise it, or use method LoRA.",
        )


def _check_tokens(
    base: BaseModel,
    model: "PreTrainedModel",
    added: Mapping[int, str],
    rows: Sequence[Sequence[TokenRow]],
    *,
    trained: bool,
) -> None:
    """Refuse rows with tokens that have no trained embedding."""
    from sluice_trainer.data.embeddings import check_embeddings

    used = np.unique(np.concatenate([part.input_ids for row in rows for part in row]))
    check_embeddings(base, model, added, used.tolist(), trained=trained)


def _check_best(training: Training, held_out_rows: int, dataset: str) -> None:
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


def _check_not_empty(rows: list[list[TokenRow]], findings: Findings) -> None:
    if rows:
        return
    if findings.overlong_rows and not findings.refused:
        raise StageError(
            Reason.DATASET_EMPTY,
            f"{findings.dataset}: all {findings.overlong_rows} rows are longer than training.maxSequenceLength, and "
            "training.overlongRows is Drop. Raise the one, or use Truncate or Split.",
        )
    if findings.refused == 0:
        raise StageError(
            Reason.DATASET_EMPTY, f"{findings.dataset} has only blank lines. Write one JSON object a line."
        )
    shown = "\n".join(findings.lines())
    raise StageError(
        Reason.DATASET_EMPTY,
        f"{findings.dataset}: no row is left, all {findings.refused} were refused. Mend them; the first are:\n{shown}",
    )
