"""The Prepare stage, from top to bottom: everything that can be wrong with the input is found here, without a GPU."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sluice_api.artifacts import MANIFEST, file_digest
from sluice_api.dataset import Dataset, DatasetFormat, RowFiles
from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.reasons import Reason
from sluice_api.reports import Activity
from sluice_api.stages import PrepareResult, StageSpec
from sluice_api.training import Method
from sluice_trainer import base_model, durable, logs, paths, prepared
from sluice_trainer.data import checks
from sluice_trainer.data.collect import Collected, collect
from sluice_trainer.data.fetch import row_files
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.data.source import Source
from sluice_trainer.data.split import held_out, repeated
from sluice_trainer.errors import StageError
from sluice_trainer.plan import Steps, different_setting, plan_digest, result_digest, settings_of
from sluice_trainer.prepared import PreparedManifest, ReadFile, RowStore, TokenRows
from sluice_trainer.report import Reporter


def prepare(stage: StageSpec, reporter: Reporter) -> PrepareResult:
    """Check model, output and every row; leave tokenised rows in <work>/prepared/.

    Raises:
        StageError: something is wrong with the input, or with the output's claim.
    """
    spec = stage.spec
    folder = paths.make_work_folder(stage) / "prepared"
    plan = plan_digest(stage)
    reporter.update(activity=Activity.PREPARING)
    files = [row_files(said, field) for field, said in _row_files_by_field(spec.dataset)]
    base = base_model.locate(spec.model.uri, credentials=spec.model.credentials, weights=False)
    inputs = {"dataset": _digest_of(files), "model": base.fingerprint, "tokenizer": base.tokenizer_digest}
    result_plan = result_digest(stage, inputs)
    if (earlier := prepared.finished(folder)) is not None:
        if earlier.result_plan == result_plan:
            if earlier.plan != plan:  # by settings that change nothing in the rows or the result
                durable.write_file(folder / MANIFEST, durable.sealed(earlier.model_copy(update={"plan": plan})))
            return earlier.result
        logs.warning("prepared anew", why=f"{_why_anew(earlier, stage, inputs)}; so what was made of them is not used")

    model = checks.layers_of(base)
    checks.check_loss(base, model)
    whole = spec.method is Method.FULL
    if whole:
        checks.check_memory(model, spec.resources)
    else:
        from sluice_trainer.train.weights.model import with_adapter

        with_adapter(model, spec)  # on the model without weights, as Train puts it on the model
    with durable.new_folder(folder) as unfinished:
        collected, sources = collect(stage, base, files, unfinished)
        findings = collected.findings
        findings.check(spec.dataset.on_bad_row)
        checks.check_not_empty(collected)
        checks.check_tokens(base, model, collected, trained=whole)
        if whole and any(source.format.form is DatasetFormat.PREFERENCE for source in sources):
            raise StageError(
                Reason.DATASET_INVALID,
                f"{findings.dataset} says which answers are preferred, which is trained by comparing the model with "
                "itself without its adapter. Set method: LoRA or QLoRA.",
            )
        training, validation = _halves(collected, spec)
        store = prepared.read_store(unfinished, ())
        lengths = TokenRows(store, training).lengths
        checks.check_best(spec.training, len(validation), findings.dataset)
        steps = Steps(lengths, spec.training).total
        checks.check_warmup(spec.training, steps)
        result = PrepareResult(
            rows=len(training),
            validation_rows=len(validation),
            refused_rows=findings.refused,
            overlong_rows=findings.overlong_rows,
            tokens=int(lengths.sum()),
            loss_tokens=_loss_tokens(store, training),
            longest_row=collected.longest_row,
            steps=steps,
            refused=findings.lines(),
        )
        with paths.writing(stage):
            prepared.write_halves(unfinished, training, validation)
        manifest = PreparedManifest(
            plan=plan,
            result_plan=result_plan,
            inputs=inputs,
            files=durable.digests(unfinished),
            result=result,
            row_files=_read_files(files, sources),
            row_format=sources[0].format.form,
            chat_template=collected.chat_template,
            base_model_uri=base.uri,
            base_model_revision=base.revision,
            base_model_fingerprint=base.fingerprint,
            seed=spec.training.seed,
            settings=settings_of(stage),
        )
        with paths.writing(stage):
            if spec.resume_from is not None:
                from sluice_trainer.train.checkpoints.resume_from import copy_checkpoint

                copy_checkpoint(stage, manifest)
            (unfinished / MANIFEST).write_text(durable.sealed(manifest))
    durable.remove_unfinished(folder.parent)
    return result


def _halves(collected: Collected, spec: FineTuneJobSpec) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of tokens to train on and those that are held out, by their indices."""
    dataset = spec.dataset
    keys, sources = collected.known.read()["key"], np.frombuffer(collected.sources, np.uint16)
    if dataset.validation is not None:
        is_held_out = sources == len(dataset.training_files)
    else:
        is_held_out = held_out(keys, float(dataset.validation_split.removesuffix("%")) / 100)
    times = np.ones(len(keys), np.int64)
    for index, files in enumerate(dataset.training_files):
        if (weight := float(files.weight)) != 1:
            times[sources == index] = repeated(keys[sources == index], weight)
    training, validation = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    return (
        collected.rows_of(training, times[training]),
        collected.rows_of(validation, np.ones(len(validation), np.int64)),
    )


def _loss_tokens(store: RowStore, chosen: NDArray[np.int64]) -> int:
    """Tokens of these rows that the loss counts."""
    ends = np.concatenate([[0], np.cumsum(store.loss_mask, dtype=np.int64)])
    return int((ends[store.offsets[chosen + 1]] - ends[store.offsets[chosen]]).sum())


def _read_files(files: Sequence[Sequence[RowFile]], sources: Sequence[Source]) -> tuple[ReadFile, ...]:
    """What TokenRow.file counts."""
    return tuple(
        ReadFile(name=file.name, unit=unit)
        for its, source in zip(files, sources, strict=True)
        for file, unit in zip(its, source.units, strict=True)
    )


_INPUTS = {"dataset": "the dataset", "model": "the base model", "tokenizer": "the model's tokenizer or chat template"}


def _why_anew(earlier: PreparedManifest, stage: StageSpec, inputs: Mapping[str, str]) -> str:
    """What has changed since rows were prepared, so that they, and all that was made of them, are another job's.

    In a cluster a job's spec can't change; on a machine of one's own its file can.
    """
    if not earlier.result_plan:
        return "a version that did not note what it made rows of has prepared them"
    if changed := [what for name, what in _INPUTS.items() if earlier.inputs.get(name) != inputs[name]]:
        return f"{' and '.join(changed)} changed since the last run"
    if differs := different_setting(earlier.settings or {}, settings_of(stage)):
        field, before, now = differs
        return f"{field} was {before} and is {now}"
    return "an address or a setting of the dataset changed since the last run"


def _digest_of(files: Sequence[Sequence[RowFile]]) -> str:
    """Digest of all files that rows are from: of each its name and what is in it."""
    lines = (f"{file_digest(file.path)}  {file.name}\n" for its in files for file in its)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _row_files_by_field(dataset: Dataset) -> list[tuple[str, RowFiles]]:
    """dataset.all_files, each with its field."""
    fields = [f"dataset.sources[{index}].uri" for index in range(len(dataset.sources))] or ["dataset.uri"]
    return list(zip([*fields, "dataset.validation.uri"], dataset.all_files, strict=False))
