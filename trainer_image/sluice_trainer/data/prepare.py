"""The Prepare stage, from top to bottom: everything that can be wrong with the input is found here, without a GPU."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sluice_api.artifacts import MANIFEST, file_digest
from sluice_api.dataset import DatasetFormat
from sluice_api.finetunejob import JobResources
from sluice_api.quantity import amount, readable
from sluice_api.reasons import Reason
from sluice_api.reports import Activity
from sluice_api.stages import PrepareResult, StageSpec
from sluice_api.training import ExportedCheckpoint, Method, Training
from sluice_trainer import base_model, durable, logs, paths, pickled, prepared
from sluice_trainer.base_model import BaseModel
from sluice_trainer.chat_template import given_template
from sluice_trainer.data.fetch import dataset_name, row_files
from sluice_trainer.data.rows import Findings, read_rows
from sluice_trainer.data.split import held_out
from sluice_trainer.errors import StageError
from sluice_trainer.plan import Steps, different_setting, plan_digest, result_digest, settings_of, warmup_steps
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
    reporter.update(activity=Activity.PREPARING)
    (file,) = (found.path for found in row_files(spec.dataset, "dataset.uri"))
    base = _base_model(stage)
    template = given_template(spec.model)
    inputs = {
        "dataset": file_digest(file),
        "model": base.fingerprint,
        "tokenizer": base.tokenizer_digest,
        **({"template": hashlib.sha256(template.encode()).hexdigest()} if template is not None else {}),
    }
    result_plan = result_digest(stage, inputs)
    if (earlier := prepared.finished(folder)) is not None:
        if earlier.result_plan == result_plan:
            if earlier.plan != plan:  # by settings that change nothing in the rows or the result
                durable.write_file(folder / MANIFEST, durable.sealed(earlier.model_copy(update={"plan": plan})))
            return earlier.result
        logs.warning("prepared anew", why=f"{_why_anew(earlier, stage, inputs)}; so what was made of them is not used")

    from sluice_trainer.data.tokenise import Tokeniser

    model = _without_weights(base)
    _check_loss(base, model)
    whole = spec.method is Method.FULL
    if whole:
        _check_memory(model, spec.resources)
    else:
        from sluice_trainer.train.weights.model import with_adapter

        with_adapter(model, spec)  # on the model without weights, as Train puts it on the model
    tokeniser = Tokeniser(base, _longest(stage, base), spec.training.overlong_rows, template)
    findings = Findings(dataset_name(spec.dataset.uri or ""), spec.dataset.format)
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
    steps = Steps(training.lengths, spec.training).total
    _check_warmup(spec.training, steps)
    result = PrepareResult(
        rows=len(training),
        validation_rows=len(validation),
        refused_rows=findings.refused,
        overlong_rows=findings.overlong_rows,
        tokens=len(training.input_ids),
        loss_tokens=int(training.loss_mask.sum()),
        longest_row=max(len(part.input_ids) for row in rows for part in row),
        steps=steps,
        refused=findings.lines(),
    )
    with paths.writing(stage), durable.new_folder(folder) as unfinished:
        prepared.write_rows(unfinished, training, validation)
        manifest = PreparedManifest(
            plan=plan,
            result_plan=result_plan,
            inputs=inputs,
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
        (unfinished / MANIFEST).write_text(durable.sealed(manifest))
    durable.remove_unfinished(folder.parent)
    return result


def _base_model(stage: StageSpec) -> BaseModel:
    """The job's model, without its weights unless they are here or have to be converted."""
    source = stage.spec.model
    base = base_model.locate(source.uri, credentials=source.credentials, weights=False)
    if not base.has_pickles:
        return base
    base = base_model.locate(source.uri, base.revision, source.credentials)
    with paths.writing(stage):
        return pickled.convert(base, paths.work_folder(stage) / pickled.FOLDER)


_INPUTS = {
    "dataset": "the dataset",
    "model": "the base model",
    "tokenizer": "the model's tokenizer or chat template",
    "template": "model.chatTemplate",
}


def _why_anew(earlier: PreparedManifest, stage: StageSpec, inputs: Mapping[str, str]) -> str:
    """What has changed since rows were prepared, so that they, and all that was made of them, are another job's.

    In a cluster a job's spec can't change; on a machine of one's own its file can.
    """
    if not earlier.result_plan:
        return "a version that did not note what it made rows of has prepared them"
    if changed := [what for name, what in _INPUTS.items() if earlier.inputs.get(name) != inputs.get(name)]:
        return f"{' and '.join(changed)} changed since the last run"
    if differs := different_setting(earlier.settings or {}, settings_of(stage)):
        field, before, now = differs
        return f"{field} was {before} and is {now}"
    return "an address or a setting of the dataset changed since the last run"


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


def _check_warmup(training: Training, steps: int) -> None:
    """Refuse a warm-up that training ends before: its learning rate would never be what was asked for."""
    if warmup_steps(steps, training) >= steps:
        raise StageError(
            Reason.DATASET_INVALID,
            f"training.warmupSteps {training.warmup_steps} is not less than the {steps} steps of this training, so its "
            "learning rate would never be at its peak. Lower it, leave it out, or raise training.epochs.",
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
