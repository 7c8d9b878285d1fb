"""The report of Prepare: prepared/report.json, and what report.html and the terminal show.

Every text is cut to its bound, and every list to its first items, when a report is made: so a report has at most about
a megabyte, whatever the rows say.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, StringConstraints

from sluice_api.model import Count, Model

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
MAX_ROW_CHARACTERS = 6000
"""Of a row that is shown, all its parts together."""
MAX_TEMPLATE_CHARACTERS = 65_536
MAX_FILES, MAX_UNREAD_FIELDS = 64, 32
"""Files that are shown, and of each the names of fields that nothing reads."""
MAX_WORD_CHARACTERS = 128
ELLIPSIS = "…"

_Item = TypeVar("_Item")


def cut(text: str, most: int) -> str:
    """The text, or as much of its beginning as `most` characters hold, with an ellipsis. Halves of surrogates go."""
    text = text if len(text) <= most else f"{text[: most - 1]}{ELLIPSIS}"
    return text.encode("utf-8", "replace").decode("utf-8")


def _text(most: int) -> Any:
    return BeforeValidator(lambda text: cut(text, most) if isinstance(text, str) else text)


def _first(most: int) -> Any:
    return BeforeValidator(lambda items: tuple(items)[:most] if isinstance(items, list | tuple) else items)


Word = Annotated[str, StringConstraints(max_length=MAX_WORD_CHARACTERS), _text(MAX_WORD_CHARACTERS)]
Line = Annotated[str, StringConstraints(max_length=256), _text(256)]
"""A place in a dataset, such as `datasets/rows.jsonl, line 17`, or another short text."""
Sentence = Annotated[str, StringConstraints(max_length=1000), _text(1000)]
Excerpt = Annotated[str, StringConstraints(max_length=1200), _text(1200)]
"""Some of a row's text."""
Decimals = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?$", max_length=32)]
"""A number with a fraction: floats do not survive every JSON client."""
Places = Annotated[tuple[Line, ...], Field(max_length=5), _first(5)]


class Severity(StrEnum):
    """Whether rows can be trained on with the problem."""

    ERROR = "Error"
    WARNING = "Warning"


class DataProblem(Model):
    """Something about the rows that a person should know, with what to do about it."""

    kind: Word = Field(description="A name that is the same for all problems of the kind, such as Duplicates.")
    severity: Severity
    message: Sentence = Field(description="What was found, and what to do next.")
    count: Count = Field(1, description="How many rows have it.")
    places: Places = Field((), description="Where the first of them are.")


class FileReport(Model):
    """One file of rows, or several of one kind under one address."""

    name: Line
    file_format: Word = Field("", description="How the file holds rows, such as Parquet.")
    row_format: Word = Field("", description="How a row says what to learn, such as Alpaca.")
    rows: Count = 0
    size_bytes: Count = 0
    unread_fields: Annotated[tuple[Word, ...], Field(max_length=MAX_UNREAD_FIELDS), _first(MAX_UNREAD_FIELDS)] = Field(
        (), description="Fields of its rows that nothing reads, such as id."
    )


class RefusedRow(Model):
    """A row that can't be trained on, and was left out."""

    place: Line
    problem: Sentence


class StepExample(Model):
    """What a step has done to one row."""

    place: Line
    why: Line = Field("", description="Why the row was dropped; empty when it was changed.")
    before: Excerpt
    after: Excerpt | None = Field(None, description="Absent when the row was dropped.")


class DropCount(Model):
    """How many rows a step dropped for one reason."""

    why: Line
    rows: Count


class StepReport(Model):
    """What one step of dataset.steps has done, or one that Prepare does by itself."""

    name: Word
    rows_in: Count
    rows_out: Count
    changed: Count = 0
    dropped_rows: Count = Field(0, description="For whatever reason. `dropped` has the commonest reasons only.")
    dropped: Annotated[tuple[DropCount, ...], Field(max_length=16), _first(16)] = ()
    examples: Annotated[tuple[StepExample, ...], Field(max_length=3), _first(3)] = ()


class LengthBin(Model):
    """How many rows have between `first` and `last` tokens, both included."""

    first: Count
    last: Count
    rows: Count


class Lengths(Model):
    """The rows' lengths in tokens, of training and held-out rows together."""

    bins: Annotated[tuple[LengthBin, ...], Field(max_length=40), _first(40)] = ()
    median: Count = 0
    p90: Count = 0
    p99: Count = 0
    longest: Count = 0
    limit: Count = Field(0, description="The longest row that training takes, in tokens.")


class Overlong(Model):
    """What became of rows that are longer than the limit."""

    truncated: Count = 0
    split: Count = 0
    dropped: Count = 0


class LikePair(Model):
    """Two rows that say the same, or nearly."""

    first: Line
    second: Line
    text: Excerpt


class Duplicates(Model):
    """Rows that are there more than once, after all steps. None of these was dropped."""

    exact: Count = Field(0, description="Training rows that an earlier training row equals.")
    across_split: Count = Field(0, description="Held-out rows that a training row equals.")
    near_across_split: Count = Field(0, description="Held-out rows that a training row nearly equals.")
    examples: Annotated[tuple[LikePair, ...], Field(max_length=3), _first(3)] = ()


class Conflict(Model):
    """One question with two answers."""

    question: Excerpt
    answers: tuple[Excerpt, Excerpt]
    places: tuple[Line, Line]


class Conflicts(Model):
    """Questions that have different answers in different rows."""

    count: Count = 0
    examples: Annotated[tuple[Conflict, ...], Field(max_length=3), _first(3)] = ()


class LanguageShare(Model):
    """How many of the rows that were looked at are in one language."""

    code: Word = Field(description="By ISO 639; empty where it is not clear.")
    rows: Count


class RowPart(Model):
    """A stretch of a row as the model reads it, and whether it learns to write it."""

    text: Annotated[str, StringConstraints(max_length=MAX_ROW_CHARACTERS), _text(MAX_ROW_CHARACTERS)]
    learnt: bool


def _cut_parts(parts: Any) -> Any:
    """Parts of a row, as many as MAX_ROW_CHARACTERS hold."""
    if not isinstance(parts, list | tuple) or not all(isinstance(part, RowPart) for part in parts):
        return parts
    kept: list[RowPart] = []
    room = MAX_ROW_CHARACTERS
    for part in parts[:200]:
        text = cut(part.text, max(1, room))
        kept.append(RowPart(text=text, learnt=part.learnt))
        room -= len(text)
        if room <= 0:
            break
    return tuple(kept)


Parts = Annotated[tuple[RowPart, ...], Field(max_length=200), BeforeValidator(_cut_parts)]


class SampleRow(Model):
    """A row as it is trained on."""

    place: Line
    tokens: Count = 0
    loss_tokens: Count = 0
    parts: Parts
    rejected: Parts = Field(
        (), description="Of a row that says which answer is preferred: the other one, which it learns not to write."
    )

    @classmethod
    def of(
        cls,
        place: str,
        parts: Iterable[tuple[str, bool]],
        tokens: int = 0,
        loss_tokens: int = 0,
        rejected: Iterable[str] = (),
    ) -> "SampleRow":
        """Make one of (text, learnt), cut to what is shown."""
        made = tuple(RowPart(text=text, learnt=learnt) for text, learnt in parts)
        other = tuple(RowPart(text=text, learnt=False) for text in rejected)
        return cls(place=place, parts=made, rejected=other, tokens=tokens, loss_tokens=loss_tokens)


class MemoryUse(Model):
    """Bytes of one GPU for one purpose."""

    what: Word
    size_bytes: Count


class Estimate(Model):
    """What training will take, as far as it can be told before."""

    gpus: Count
    gpu_product: Word = Field("", description="What the pool's nodes say their GPU is; empty: they do not say.")
    gpu_memory_bytes: Count = Field(description="Peak memory of one GPU.")
    least_gpu_memory_bytes: Count = Field(
        description="The least that will do: the longest row alone, with activations computed a second time if the "
        "job allows that."
    )
    available_gpu_memory_bytes: Count | None = Field(
        None, description="Of the pool's largest GPU. Absent: its nodes do not say."
    )
    parts: Annotated[tuple[MemoryUse, ...], Field(max_length=8)] = Field(
        (), description="What gpuMemoryBytes is made of."
    )
    micro_batch_tokens: Count = Field(0, description="Tokens that are in the memory of one GPU at once.")
    gradient_checkpointing: bool = Field(False, description="Whether activations are computed a second time.")
    sharded: bool = Field(False, description="Whether each GPU keeps only a part of the weights.")
    steps: Count = 0
    tokens: Count = Field(0, description="Tokens that training reads, over all epochs.")
    seconds: Count | None = Field(None, description="The middle of the range. Absent: the GPU is not known.")
    least_seconds: Count | None = None
    most_seconds: Count | None = None
    price: Decimals | None = Field(None, description="For the middle of the range, at the pool's price.")
    least_price: Decimals | None = None
    most_price: Decimals | None = None
    basis: Sentence = Field("", description="What the estimate takes for granted, or why there is no time in it.")


class DataReport(Model):
    """Everything that Prepare has to say about the rows."""

    format: Literal["sluice.report/v1"] = "sluice.report/v1"
    job: Line
    model: Line = ""
    method: Word = ""
    files: Annotated[tuple[FileReport, ...], Field(max_length=MAX_FILES), _first(MAX_FILES)] = ()
    rows_read: Count = 0
    rows_refused: Count = 0
    refused_after_steps: Count = Field(
        0, description="Of these, the rows that had passed all steps, such as those that the chat template refuses."
    )
    refused: Annotated[tuple[RefusedRow, ...], Field(max_length=5), _first(5)] = ()
    steps: Annotated[tuple[StepReport, ...], Field(max_length=32), _first(32)] = ()
    rows: Count = Field(0, description="Rows to train on.")
    validation_rows: Count = Field(0, description="Rows held out.")
    tokens: Count = Field(0, description="Tokens of the training rows, one pass.")
    loss_tokens: Count = Field(0, description="Of these, the tokens that the loss counts.")
    lengths: Lengths = Field(default_factory=Lengths)
    overlong: Overlong = Field(default_factory=Overlong)
    duplicates: Duplicates = Field(default_factory=Duplicates)
    conflicts: Conflicts = Field(default_factory=Conflicts)
    languages: Annotated[tuple[LanguageShare, ...], Field(max_length=32), _first(32)] = ()
    chat_template: Annotated[
        str, StringConstraints(max_length=MAX_TEMPLATE_CHARACTERS), _text(MAX_TEMPLATE_CHARACTERS)
    ] = Field("", description="The template's text; empty when rows are rendered without one.")
    rendered: SampleRow | None = Field(None, description="One row as the template renders it.")
    samples: Annotated[tuple[SampleRow, ...], Field(max_length=5), _first(5)] = ()
    problems: Annotated[tuple[DataProblem, ...], Field(max_length=100), _first(100)] = ()
    estimate: Estimate | None = None

    @property
    def first_problems(self) -> tuple[str, ...]:
        """The three problems that a person should know first, errors before warnings, for PrepareResult.problems."""
        ordered = sorted(self.problems, key=lambda problem: problem.severity is not Severity.ERROR)
        return tuple(cut(problem.message, MAX_PROBLEM_CHARACTERS) for problem in ordered[:3])

    @property
    def of_result(self) -> dict[str, Any]:
        """The fields of stages.PrepareResult that repeat the report for the job's status."""
        alike, estimate = self.duplicates, self.estimate
        return {
            "dropped_rows": self.overlong.dropped + sum(step.dropped_rows for step in self.steps),
            "duplicate_rows": alike.exact + alike.across_split + alike.near_across_split,
            "conflicting_questions": self.conflicts.count,
            "estimated_gpu_memory_bytes": estimate.gpu_memory_bytes if estimate else None,
            "estimated_seconds": estimate.seconds if estimate else None,
            "estimated_price": (estimate.price if estimate else None) or "",
            "problems": self.first_problems,
        }


MAX_PROBLEM_CHARACTERS = 200
"""Of a problem in PrepareResult: a termination message holds all of it."""
