"""What Prepare found, as a report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic.alias_generators import to_camel

from sluice_api.data_report import (
    Conflict,
    Conflicts,
    DataProblem,
    DataReport,
    Duplicates,
    Estimate,
    FileReport,
    LanguageShare,
    LikePair,
    Overlong,
    RefusedRow,
    SampleRow,
    Severity,
)
from sluice_api.dataset import DatasetFormat
from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.stages import PrepareResult, StageSpec
from sluice_api.training import Lora, Method, OverlongRows
from sluice_trainer.data.alike import Alike
from sluice_trainer.data.collect import Collected, too_slow
from sluice_trainer.data.findings import Findings, Place
from sluice_trainer.data.near_misses import quoted
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.data.report.lengths import lengths_of
from sluice_trainer.data.source import Source
from sluice_trainer.token_rows import ReadFile, RowStore, TokenRow

_SAMPLES = 5
_ASKED_WITH = frozenset(
    {"background", "context", "document", "history", "input", "instruction", "passage", "system", "system_prompt"}
)
"""Names of fields that hold a part of what is asked, in public datasets."""
_FEW_ROWS = 10
"""Fewer than these teach next to nothing; OpenAI's service refuses them."""


@dataclass(frozen=True)
class Found:
    """Everything that a report is made of."""

    stage: StageSpec
    files: Sequence[Sequence[RowFile]]
    sources: Sequence[Source]
    row_files: Sequence[ReadFile]
    collected: Collected
    store: RowStore
    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    alike: Alike
    result: PrepareResult
    estimate: Estimate


def report_of(found: Found) -> DataReport:
    """Make the report."""
    collected, result = found.collected, found.result
    samples = tuple(_sample(found, index) for index in _spread(found.training, _SAMPLES))
    made = DataReport(
        job=found.stage.name,
        model=found.stage.spec.model.uri,
        method=found.stage.spec.method,
        files=tuple(_files(found)),
        rows_read=sum(collected.rows_read.values()),
        rows_refused=collected.findings.refused,
        refused_after_steps=collected.findings.refused_after_steps,
        refused=tuple(
            RefusedRow(place=str(place), problem=error.problem) for place, error in collected.findings.first_refused
        ),
        steps=collected.tally.reports(),
        rows=result.rows,
        validation_rows=result.validation_rows,
        tokens=result.tokens,
        loss_tokens=result.loss_tokens,
        lengths=lengths_of(np.bincount(_lengths(found)), collected.limit),
        overlong=_overlong(found),
        duplicates=_duplicates(found),
        conflicts=_conflicts(found),
        languages=tuple(LanguageShare(code=code, rows=rows) for code, rows in collected.languages.most_common()),
        chat_template=collected.chat_template,
        rendered=samples[0] if samples else None,
        samples=samples,
        estimate=found.estimate,
    )
    return made.model_copy(update={"problems": tuple(_problems(made, found))})


def _lengths(found: Found) -> NDArray[np.int64]:
    """Tokens of each row; of a pair those of its longer side, because the limit is for each."""
    chosen = np.concatenate([found.training, found.validation])
    both, splits = np.diff(found.store.offsets)[chosen], found.store.splits[chosen]
    longer: NDArray[np.int64] = np.maximum(splits, both - splits)
    return longer


def _files(found: Found) -> Iterator[FileReport]:
    number = 0
    for its, source in zip(found.files, found.sources, strict=True):
        for file, file_format in zip(its, source.file_formats, strict=True):
            yield FileReport(
                name=file.name,
                file_format=file_format,
                row_format=source.format.form,
                rows=found.collected.rows_read[number],
                size_bytes=file.path.stat().st_size,
                unread_fields=tuple(sorted(found.collected.unread.get(number, ()))),
            )
            number += 1


def _overlong(found: Found) -> Overlong:
    policy, count = found.stage.spec.training.overlong_rows, found.collected.findings.overlong_rows
    return Overlong(
        truncated=count if policy is OverlongRows.TRUNCATE else 0,
        split=count if policy is OverlongRows.SPLIT else 0,
        dropped=count if policy is OverlongRows.DROP else 0,
    )


def _duplicates(found: Found) -> Duplicates:
    alike = found.alike
    pairs = [*alike.exact_pairs[:1], *alike.across_pairs, *alike.exact_pairs[1:]]
    return Duplicates(
        exact=alike.exact,
        across_split=alike.across,
        near_across_split=alike.near_across,
        examples=tuple(
            LikePair(first=_place(found, one), second=_place(found, other), text=_text(found, one))
            for one, other in pairs
        ),
    )


def _conflicts(found: Found) -> Conflicts:
    return Conflicts(
        count=found.alike.conflicts,
        examples=tuple(
            Conflict(
                question=_text(found, one, learnt=False),
                answers=(_text(found, one, learnt=True), _text(found, other, learnt=True)),
                places=(_place(found, one), _place(found, other)),
            )
            for one, other in found.alike.conflict_pairs
        ),
    )


def _spread(rows: NDArray[np.int64], most: int) -> list[int]:
    """Some of these rows at even distances, each once."""
    chosen = np.linspace(0, len(rows) - 1, min(most, len(rows)), dtype=np.int64)
    return list(dict.fromkeys(rows[chosen].tolist()))


def _sample(found: Found, index: int) -> SampleRow:
    row = found.store[index]
    place, tokens, learnt = _row_place(found, row), len(row.input_ids), int(row.loss_mask.sum())
    if not row.split:
        return SampleRow.of(place, found.collected.parts(row), tokens, learnt)
    chosen, rejected = map(found.collected.parts, row.answers())  # before the answers both say the same
    return SampleRow.of(place, chosen, tokens, learnt, [text for text, in_loss in rejected if in_loss])


def _row_place(found: Found, row: TokenRow) -> str:
    file = found.row_files[row.file]
    return str(Place(file.name, file.unit, row.line))


def _first(found: Found, of_dataset: int) -> TokenRow:
    """The first row of tokens that a row of the dataset has become."""
    row = found.store[found.collected.firsts[of_dataset]]
    return row.answers()[0] if row.split else row


def _place(found: Found, of_dataset: int) -> str:
    return _row_place(found, found.store[found.collected.firsts[of_dataset]])


def _text(found: Found, of_dataset: int, *, learnt: bool | None = None) -> str:
    """The text of a row of the dataset, or what of it is learnt or is not."""
    parts = found.collected.parts(_first(found, of_dataset))
    return "".join(text for text, in_loss in parts if learnt is None or in_loss is learnt)


def _warning(kind: str, message: str, count: int, places: Sequence[str] = ()) -> DataProblem:
    return DataProblem(kind=kind, severity=Severity.WARNING, message=message, count=count, places=tuple(places))


def _problems(report: DataReport, found: Found) -> Iterator[DataProblem]:
    """What a person should know before it is trained on."""
    dataset = found.collected.findings.dataset

    alike, duplicates = found.alike, report.duplicates
    if report.rows_refused:
        message = (
            f"{report.rows_refused:,} rows of {dataset} can't be trained on and are left out; the first are shown."
        )
        yield _warning("RefusedRows", message, report.rows_refused, [row.place for row in report.refused])
    if report.conflicts.count:
        first = report.conflicts.examples[0]
        yield _warning(
            "ConflictingAnswers",
            f"{report.conflicts.count:,} questions have different answers, such as {first.places[0]} and "
            f"{first.places[1]}. Keep the right one: the model learns something between them.",
            report.conflicts.count,
            [place for example in report.conflicts.examples for place in example.places],
        )
    across = duplicates.across_split + duplicates.near_across_split
    if across:
        one, other = alike.across_pairs[0]
        yield _warning(
            "DuplicatesAcrossSplit",
            f"{across:,} of {report.validation_rows:,} held-out rows say the same as a training row or nearly, such as "
            f"{_place(found, one)} and {_place(found, other)}. The loss on them is better than it is on new rows: "
            + (
                "give other rows in dataset.validation."
                if across * 2 > report.validation_rows and found.stage.spec.dataset.validation
                else "add {deduplicate: {near: '0.8'}} to dataset.steps."
            ),
            across,
            [_place(found, row) for pair in alike.across_pairs for row in pair],
        )
    if duplicates.exact:
        one, other = alike.exact_pairs[0]
        yield _warning(
            "Duplicates",
            f"{duplicates.exact:,} rows equal an earlier one, such as {_place(found, other)} and "
            f"{_place(found, one)}. They are learnt as often as they are there: add {{deduplicate: {{}}}} to "
            "dataset.steps if that is not meant.",
            duplicates.exact,
            [_place(found, other) for _, other in alike.exact_pairs],
        )
    split = found.stage.spec.dataset
    is_asked = split.validation is not None or split.validation_split != "0%"
    yield from _problems_of_length(report, found.collected.findings, is_asked=is_asked)
    yield from _problems_of_files(found)
    yield from _problems_of_settings(found.stage.spec)
    if (seconds := found.collected.forecast_seconds) is not None:
        yield _warning("TooSlow", too_slow(dataset, seconds, found.stage.spec.stage_deadline_seconds), 1)
    for step in report.steps:
        if step.dropped_rows * 2 > step.rows_in:
            message = (
                f"The step {step.name} dropped {step.dropped_rows:,} of {step.rows_in:,} rows. Look at its examples."
            )
            yield _warning("MostRowsDropped", message, step.dropped_rows, [example.place for example in step.examples])


def _problems_of_length(report: DataReport, findings: Findings, *, is_asked: bool) -> Iterator[DataProblem]:
    places = [*map(str, findings.first_overlong)]
    if cut := report.overlong.truncated:
        message = (
            f"{cut:,} rows are longer than training.maxSequenceLength and lose their ends, answers among them, such as "
            f"{places[0]}. Raise it, or set training.overlongRows: Split."
        )
        yield _warning("Truncated", message, cut, places)
    if report.overlong.dropped:
        message = (
            f"{report.overlong.dropped:,} rows are longer than training.maxSequenceLength and are left out, such as "
            f"{places[0]}. Raise it, or set training.overlongRows: Truncate."
        )
        yield _warning("TooLong", message, report.overlong.dropped, places)
    if not report.validation_rows and is_asked:
        yield _warning(
            "NothingHeldOut",
            "No row is held out, so that the loss on rows that are not learnt is not measured. Add rows, raise "
            "dataset.validationSplit, or give dataset.validation others.",
            1,
        )
    if report.rows < _FEW_ROWS:
        yield _warning("FewRows", f"There are only {report.rows} rows to train on. Add more.", report.rows)


def _problems_of_files(found: Found) -> Iterator[DataProblem]:
    findings, names = found.collected.findings, [file.name for its in found.files for file in its]
    empty = [name for number, name in enumerate(names) if not found.collected.rows_read[number]]
    if empty:
        message = (
            f"{len(empty):,} of {len(names):,} files have no rows, such as {empty[0]}. Look whether they were "
            "written to their ends, or leave them out."
        )
        yield _warning("EmptyFiles", message, len(empty), empty)
    yield from _unread_fields(found)
    if lost := findings.lost_characters:
        places = [*map(str, findings.first_lost)]
        message = (
            f"{lost:,} rows have the character U+FFFD, which stands in the place of others that were lost, such as "
            f"{places[0]}. Read the original with its own encoding, and save it as UTF-8."
        )
        yield _warning("LostCharacters", message, lost, places)


def _unread_fields(found: Found) -> Iterator[DataProblem]:
    """Fields that nothing reads, where they are likely to belong to what is asked."""
    number = 0
    for its, source in zip(found.files, found.sources, strict=True):
        unread = {name for n in range(number, number + len(its)) for name in found.collected.unread.get(n, ())}
        number += len(its)
        if names := sorted(name for name in unread if name.lower() in _ASKED_WITH):
            cure = "Write them into the text that is asked"
            if source.format.form is DatasetFormat.PROMPT_COMPLETION:
                cure = f"Set dataset.fields: {{instruction: ..., input: {names[0]}, output: ...}}"
            message = (
                f"{source.name} has {quoted(names)}, which nothing reads: the model learns to answer without. {cure}, "
                "or leave it out of the rows."
            )
            yield _warning("UnreadFields", message, len(names), [its[0].name])


def _problems_of_settings(spec: FineTuneJobSpec) -> Iterator[DataProblem]:
    """What was asked for and does nothing. The API server stores defaults, so that these were not asked for."""
    if spec.method is not Method.FULL:
        return
    for name, default in Lora():
        if (value := getattr(spec.lora, name)) != default:
            field = f"lora.{to_camel(name)}"
            yield _warning(
                "UnusedSetting",
                f"{field} {_shown(value)} is not used: method Full trains all weights and has no adapter. Leave lora "
                "out, or set method: LoRA.",
                1,
            )


def _shown(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
