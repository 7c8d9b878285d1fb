"""The Prepare stage, from top to bottom: everything that can be wrong with the input is found here, without a GPU."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sluice_api.artifacts import MANIFEST, file_digest
from sluice_api.dataset import DatasetFormat
from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.reports import Activity
from sluice_api.stages import PrepareResult, StageSpec
from sluice_api.training import Method
from sluice_trainer import base_model, durable, logs, pickled, prepared, token_rows
from sluice_trainer.base_model import BaseModel
from sluice_trainer.chat_template import given_template
from sluice_trainer.data import checks, fetch, weights
from sluice_trainer.data.alike import alike
from sluice_trainer.data.collect import Collected, collect, words_of
from sluice_trainer.data.estimate.estimate import estimate
from sluice_trainer.data.estimate.fits import require_fits
from sluice_trainer.data.estimate.shape import ModelShape, shape_of
from sluice_trainer.data.estimate.ways import RowFacts
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.data.report.fill import Found, report_of
from sluice_trainer.data.report.page import write_report
from sluice_trainer.data.source import Source
from sluice_trainer.data.split import held_out, repeated
from sluice_trainer.plan import Steps, different_setting, plan_digest, settings_of
from sluice_trainer.prepared import PreparedManifest
from sluice_trainer.report import Reporter
from sluice_trainer.token_rows import ReadFile, RowStore, TokenRows
from sluice_trainer.work import work_of
from sluice_trainer.work_folder import WorkFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sluice_trainer.train.checkpoints.resume_from import OlderJob


def prepare(stage: StageSpec, reporter: Reporter) -> PrepareResult:
    """Check model, output and every row; leave tokenised rows in <work>/prepared/.

    Raises:
        StageError: something is wrong with the input, or with the output's claim.
    """
    spec = stage.spec
    work = work_of(stage)
    work.check_writable()
    folder = work.folder / "prepared"
    reporter.update(activity=Activity.PREPARING)
    files = [fetch.row_files(said, field) for field, said in spec.dataset.files_by_field.items()]
    base = _base_model(stage, work)
    template, words = given_template(spec.model), words_of(spec.dataset)
    inputs = {
        "dataset": _digest_of(files),
        "model": base.fingerprint,
        "tokenizer": base.tokenizer_digest,
        **({"words": hashlib.sha256(repr(words).encode()).hexdigest()} if words else {}),
        **({"template": hashlib.sha256(template.encode()).hexdigest()} if template is not None else {}),
    }
    plan = plan_digest(stage, inputs)
    earlier = prepared.finished(work.fetch(folder))
    if earlier is not None and earlier.plan == plan:
        return earlier.result
    if why := _why_anew(earlier, stage, inputs) if earlier else prepared.foreign(folder):
        logs.warning("prepared anew", why=f"{why}; so what was made of them is not used")

    older: OlderJob | None = None
    if spec.resume_from is not None:
        from sluice_trainer.train.checkpoints.resume_from import older_job

        older = older_job(stage, plan, base.fingerprint)
    model = checks.layers_of(base)
    shape = _shape(stage, base, model)
    weights.check_weights(base, model)
    work.remove_unfinished(folder)  # what a Prepare that was killed has left may be as large as what comes
    with work.new_folder(folder) as unfinished:
        collected, sources = collect(stage, base, template, words, files, work, unfinished)
        checks.check_rows(stage, base, model, collected, sources)
        result, about = _written(stage, shape, files, collected, sources, work, unfinished)
        manifest = PreparedManifest(
            plan=plan,
            inputs=inputs,
            files=durable.digests(unfinished),
            result=result,
            row_files=about,
            row_format=next(form for source in sources if (form := source.format.form) is not DatasetFormat.AUTO),
            chat_template=collected.chat_template,
            base_model_uri=base.uri,
            base_model_revision=base.revision,
            base_model_fingerprint=base.fingerprint,
            seed=spec.training.seed,
            settings=settings_of(stage),
        )
        with work.writing():
            if older is not None:
                older.copy_checkpoint(manifest)
            (unfinished / MANIFEST).write_text(durable.sealed(manifest))
    work.remove_unfinished(folder)
    return result


def _shape(stage: StageSpec, base: BaseModel, model: "PreTrainedModel") -> ModelShape:
    """The shape of what is trained.

    Raises:
        StageError: the model can't be trained so, or fits no GPU of the pool.
    """
    checks.check_loss(base, model)
    if stage.spec.method is Method.FULL:
        checks.check_room(model, stage.spec)
        shape = shape_of(model)
    else:
        from sluice_trainer.train.weights.model import with_adapter

        shape = shape_of(with_adapter(model, stage.spec))  # on no weights, as Train puts it on the model
    require_fits(shape, stage.spec, 1, stage.pool)  # before rows are read, which may take an hour
    return shape


def _written(
    stage: StageSpec,
    shape: ModelShape,
    files: Sequence[Sequence[RowFile]],
    collected: Collected,
    sources: Sequence[Source],
    work: WorkFolder,
    folder: Path,
) -> tuple[PrepareResult, tuple[ReadFile, ...]]:
    """Divide the rows, and write which are trained on, and the report. The rows themselves are there."""
    spec = stage.spec
    halves = _halves(collected, spec)
    row_files = _read_files(files, sources)
    store = token_rows.read_store(folder, row_files, in_memory=0)  # each is looked at once, and there may be many
    checks.check_training_rows(len(halves.training), collected.findings.dataset)
    checks.check_best(spec.training, len(halves.validation), collected.findings.dataset)
    facts = _facts(store, halves, collected, sources, spec)
    checks.check_warmup(spec.training, facts.steps)
    require_fits(shape, spec, facts.longest, stage.pool)
    estimated = estimate(shape, spec, facts, stage.pool)
    likeness = alike(collected.known.read(), halves.is_trained, halves.is_held_out)
    result = _result(collected, halves, facts)
    report = report_of(
        Found(
            stage, files, sources, row_files, collected, store, halves.training, halves.validation, likeness, result,
            estimated,
        )
    )  # fmt: skip
    with work.writing():
        token_rows.write_halves(folder, halves.training, halves.validation)
        write_report(folder, report)
    return result.model_copy(update=report.of_result), row_files


@dataclass(frozen=True)
class _Halves:
    """Which rows are trained on, and which are held out."""

    is_trained: NDArray[np.bool_]
    """Of each row of the dataset. One that is on neither side is of a source whose weight leaves it out."""
    is_held_out: NDArray[np.bool_]
    training: NDArray[np.int64]
    """Indices of rows of tokens; one that is weighted is there more than once, or not at all."""
    validation: NDArray[np.int64]


def _halves(collected: Collected, spec: FineTuneJobSpec) -> _Halves:
    """Divide the rows, by their content, the seed and the sources' weights."""
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
    times[is_held_out] = 1
    is_trained = ~is_held_out & (times > 0)
    training, validation = np.flatnonzero(is_trained), np.flatnonzero(is_held_out)
    return _Halves(
        is_trained,
        is_held_out,
        collected.rows_of(training, times[training]),
        collected.rows_of(validation, times[validation]),
    )


def _facts(
    store: RowStore, halves: _Halves, collected: Collected, sources: Sequence[Source], spec: FineTuneJobSpec
) -> RowFacts:
    """What the estimate needs to know of the rows."""
    training, validation = TokenRows(store, halves.training), TokenRows(store, halves.validation)
    steps = Steps(training.lengths, spec.training)
    return RowFacts(
        rows=len(training),
        tokens=int(training.lengths.sum()),
        loss_tokens=int(store.learnt[halves.training].sum(dtype=np.int64)),
        longest=collected.longest_row,
        steps=steps.total,
        epochs=steps.epochs_before(steps.total),
        validation_tokens=int(validation.lengths.sum()),
        is_preference=any(source.format.form is DatasetFormat.PREFERENCE for source in sources),
    )


def _result(collected: Collected, halves: _Halves, facts: RowFacts) -> PrepareResult:
    """What is known without the report."""
    findings = collected.findings
    return PrepareResult(
        rows=len(halves.training),
        validation_rows=len(halves.validation),
        refused_rows=findings.refused,
        overlong_rows=findings.overlong_rows,
        tokens=facts.tokens,
        loss_tokens=facts.loss_tokens,
        longest_row=facts.longest,
        steps=facts.steps,
        refused=findings.lines(),
    )


def _read_files(files: Sequence[Sequence[RowFile]], sources: Sequence[Source]) -> tuple[ReadFile, ...]:
    """What TokenRow.file counts."""
    return tuple(
        ReadFile(name=file.name, unit=unit)
        for its, source in zip(files, sources, strict=True)
        for file, unit in zip(its, source.units, strict=True)
    )


_INPUTS = {
    "dataset": "the dataset",
    "model": "the base model",
    "tokenizer": "the model's tokenizer or chat template",
    "template": "model.chatTemplate",
    "words": "a file of words that a filter names",
}


def _base_model(stage: StageSpec, work: WorkFolder) -> BaseModel:
    """The job's model, without its weights unless they are here or have to be converted."""
    source = stage.spec.model
    base = base_model.locate(source.uri, credentials=source.credentials, weights=False)
    if not base.has_pickles:
        return base
    base = base_model.locate(source.uri, base.revision, source.credentials)
    with work.writing():
        return pickled.convert(base, work)


def _why_anew(earlier: PreparedManifest, stage: StageSpec, inputs: Mapping[str, str]) -> str:
    """What has changed since rows were prepared, so that they, and all that was made of them, are another job's.

    In a cluster a job's spec can't change; on a machine of one's own its file can.
    """
    if changed := [what for name, what in _INPUTS.items() if earlier.inputs.get(name) != inputs.get(name)]:
        return f"{' and '.join(changed)} changed since the last run"
    if differs := different_setting(earlier.settings, settings_of(stage)):
        field, before, now = differs
        return f"{field} was {before} and is {now}"
    return "an address or a setting of the dataset changed since the last run"


def _digest_of(files: Sequence[Sequence[RowFile]]) -> str:
    """Digest of all files that rows are from: of each its name and what is in it."""
    lines = (f"{file_digest(file.path)}  {file.name}\n" for its in files for file in its)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
