"""From rows as they were read to rows of tokens. A batch is made of nothing but itself: any process can make it.

What needs to know other rows, which ones were there before, is left to the one who takes the batches in (tally.py).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sluice_api.data_report import MAX_UNREAD_FIELDS, MAX_WORD_CHARACTERS, cut
from sluice_api.dataset import DatasetFormat
from sluice_api.reasons import Reason
from sluice_trainer.data.findings import Place
from sluice_trainer.data.formats import format_of, parse, renamed, unread
from sluice_trainer.data.near_misses import in_their_words
from sluice_trainer.data.read.batch import Batch
from sluice_trainer.data.row import AnyRow, BadRowError, Fields, Row, Tokens, require_filled
from sluice_trainer.data.steps.deduplicate import DropDuplicates, sketch
from sluice_trainer.data.steps.keys import answer_key, question_key
from sluice_trainer.data.steps.languages import row_language
from sluice_trainer.data.steps.redact import RedactTexts
from sluice_trainer.data.steps.signature import Signature
from sluice_trainer.data.steps.step import Dropped, RowStep, example_of, texts_of
from sluice_trainer.data.tokenise import Tokenised, Tokeniser
from sluice_trainer.errors import StageError
from sluice_trainer.token_rows import TokenRow

_SHOWN_CHANGES = 3
"""Rows of a batch whose change by a step is kept as an example."""
_CHANGE_CHARACTERS = 1000
"""Of each of their texts, before and after."""
_EXAMPLE_CHARACTERS = 200
"""Of the text of a row that is dropped."""
_LOST = "\ufffd"
"""What is written in the place of bytes that could not be decoded."""


@dataclass(frozen=True)
class RowFormat:
    """How the rows of a source say what to learn."""

    form: DatasetFormat
    names: Mapping[str, str]
    """dataset.fields: the name that the format knows, and the rows' own name of it."""
    decided_by: Place | None = None
    """The row that decided it; None where the job says it."""


@dataclass(frozen=True)
class Task:
    """Rows to make tokens of."""

    batch: Batch
    file: str
    unit: str
    format: RowFormat
    languages: bool = True
    """Whether to find out in which languages the rows are."""


@dataclass(frozen=True)
class Drop:
    """A step did not let a row pass."""

    why: str
    example: str


@dataclass(frozen=True)
class Compared:
    """What a `deduplicate` compares a row by."""

    step: int
    signature: Signature
    example: str
    """Some of its text, to show where it is dropped."""


@dataclass(frozen=True)
class Piece:
    """A row on its way through the steps: as it came, or one of several that it was cut into."""

    since: int
    """The first step that it went through by itself. Up to there it was one with the piece before it."""
    ended: int
    """The step that dropped it, or else the number of steps."""
    changed: tuple[int, ...]
    """Steps that changed it, from `since` on."""
    compared: tuple[Compared, ...]
    """What each `deduplicate` knows it by."""
    end: Tokenised | BadRowError | Drop
    question: int | None = None
    answer: int | None = None
    """steps.keys of the row; None where it has none."""
    sketch: bytes = b""
    """Of what the row says when it has passed all steps; empty of rows that came as tokens, or have too few words."""


@dataclass(frozen=True)
class Made:
    """What became of one row."""

    number: int
    pieces: Sequence[Piece] | BadRowError


@dataclass(frozen=True)
class Change:
    """An example of what a step does."""

    step: int
    number: int
    before: str
    after: str


@dataclass
class MadeBatch:
    """What became of a task's rows, in their order."""

    made: list[Made] = field(default_factory=list)
    error: StageError | None = None
    """What ends the preparation after these rows."""
    unread: set[str] = field(default_factory=set)
    """The first fields that nothing reads."""
    named: set[str] = field(default_factory=set)
    """Of dataset.fields, the formats' names of those that a row has."""
    languages: Counter[str] = field(default_factory=Counter)
    """Rows by language; an empty one is not clear."""
    changes: list[Change] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    """Rows with U+FFFD in a text."""


@dataclass(frozen=True)
class _Passed:
    """A row that has passed all steps, and waits for its tokens."""

    since: int
    changed: tuple[int, ...]
    compared: tuple[Compared, ...]
    row: AnyRow


class RowMaker:
    """Makes tokens of rows, with the steps of a job, one tokenizer and one chat template."""

    def __init__(self, tokeniser: Tokeniser, steps: Sequence[RowStep | DropDuplicates] = ()) -> None:
        self._tokeniser = tokeniser
        self._steps = steps
        self._redacts = [step for step in steps if isinstance(step, RedactTexts)]

    @property
    def chat_template(self) -> str:
        """The template that rows are rendered with; empty when the model has none."""
        return self._tokeniser.chat_template

    @property
    def added_tokens(self) -> dict[int, str]:
        """The tokens that were added to the vocabulary, by their ids."""
        return self._tokeniser.added_tokens

    def parts(self, row: TokenRow) -> list[tuple[str, bool]]:
        """The text of a row in its parts, each with whether the loss counts it."""
        return self._tokeniser.parts(row)

    @property
    def steps(self) -> Sequence[RowStep | DropDuplicates]:
        """What is done to rows, in this order."""
        return self._steps

    def make(self, task: Task) -> MadeBatch:
        """Make a task's rows."""
        made = MadeBatch()
        passed: list[tuple[int, list[_Passed | Piece] | BadRowError]] = []
        try:
            for number, found in _parsed(task):
                if isinstance(found, BadRowError):
                    passed.append((number, found))
                    continue
                row, fields = found
                made.named.update(task.format.names.keys() & fields.keys())
                if len(made.unread) < MAX_UNREAD_FIELDS:  # as many as are shown: a row may have any number
                    names = sorted(unread(fields, task.format.form))[:MAX_UNREAD_FIELDS]
                    made.unread.update(cut(name, MAX_WORD_CHARACTERS) for name in names)
                if task.languages and not isinstance(row, Tokens):
                    made.languages[row_language(row) or ""] += 1
                if not isinstance(row, Tokens) and any(_LOST in text for text in texts_of(row)):
                    made.lost.append(number)
                passed.append((number, list(self._through(row, number, made))))
        except StageError as error:
            made.error = error
        try:
            made.made = self._tokenised(passed)
        except StageError as error:
            made.error = error
        return made

    def _through(self, row: AnyRow, number: int, made: MadeBatch) -> Iterator[_Passed | Piece]:
        """Take a row through all steps: what passes, and what is dropped."""
        if isinstance(row, Tokens):
            if self._steps:
                raise StageError(
                    Reason.DATASET_INVALID,
                    "dataset.steps change texts, and rows of format Tokens have none. Leave the steps out, or give the "
                    "rows as texts.",
                )
            yield _Passed(0, (), (), row)
            return
        waiting: list[tuple[int, tuple[Compared, ...], Row]] = [(0, (), row)]
        while waiting:
            since, compared, row = waiting.pop()
            changed: list[int] = []
            for index in range(since, len(self._steps)):
                step = self._steps[index]
                if isinstance(step, DropDuplicates):
                    compared = (*compared, Compared(index, step.signature(row), self._shown(example_of(row))))
                    continue
                try:
                    become = step.apply(row)
                except Dropped as dropped:
                    yield Piece(since, index, tuple(changed), compared, Drop(dropped.why, self._shown(dropped.example)))
                    break
                if become != [row]:
                    changed.append(index)
                    self._show_change(made, index, number, row, become)
                row = become[0]
                # The rest are looked at later, each from the next step on.
                waiting += [(index + 1, compared, each) for each in reversed(become[1:])]
            else:
                try:
                    require_filled(row)
                except BadRowError as error:
                    yield Piece(since, len(self._steps), tuple(changed), compared, error)
                else:
                    yield _Passed(since, tuple(changed), compared, row)

    def _show_change(self, made: MadeBatch, step: int, number: int, row: Row, become: Sequence[Row]) -> None:
        if sum(change.step == step for change in made.changes) < _SHOWN_CHANGES:
            before, after = (
                self._shown("\n".join(text for each in rows for text in texts_of(each)), _CHANGE_CHARACTERS)
                for rows in ([row], become)
            )
            made.changes.append(Change(step, number, before, after))

    def _shown(self, text: str, most: int = _EXAMPLE_CHARACTERS) -> str:
        """The beginning of a text, as a report may show it: what a `redact` takes out is hidden, whichever step shows
        it."""
        if not self._redacts:
            return text[:most]
        beginning = text[: 2 * most]
        for step in self._redacts:
            beginning = step.hidden(beginning)
        # Where the text was cut, there may be a part of what is known only as a whole.
        return beginning[:most] if len(text) <= 2 * most else beginning[: max(0, min(most, len(beginning) - most))]

    def _tokenised(self, passed: Sequence[tuple[int, list[_Passed | Piece] | BadRowError]]) -> list[Made]:
        rows = [
            piece.row
            for _, pieces in passed
            if not isinstance(pieces, BadRowError)
            for piece in pieces
            if isinstance(piece, _Passed)
        ]
        tokenised = iter(self._tokeniser.tokenise(rows))

        def ended(piece: _Passed | Piece) -> Piece:
            if isinstance(piece, Piece):
                return piece
            come_to, row = next(tokenised), piece.row
            keys = () if isinstance(row, Tokens) else (question_key(row), answer_key(row), sketch(row))
            return Piece(piece.since, len(self._steps), piece.changed, piece.compared, come_to, *keys)

        return [
            Made(number, pieces if isinstance(pieces, BadRowError) else [ended(piece) for piece in pieces])
            for number, pieces in passed
        ]


def _parsed(task: Task) -> Iterator[tuple[int, tuple[AnyRow, Fields] | BadRowError]]:
    """Each row of a task.

    Raises:
        StageError: no row after this one can be read so.
    """
    expected = task.format
    for number, decoded in task.batch.decoded():
        if isinstance(decoded, BadRowError):
            yield number, decoded
            continue
        yield number, _row(decoded, expected, Place(task.file, task.unit, number))


def _row(decoded: Fields, expected: RowFormat, place: Place) -> tuple[AnyRow, Fields] | BadRowError:
    """One row, and its fields."""
    fields = renamed(decoded, expected.names)
    try:
        found = format_of(fields, expected.form, str(place), expected.names)
        if found != expected.form:
            raise _mixed(place, found, expected)
    except BadRowError as error:
        return error
    try:
        return parse(fields, found, str(place)), fields
    except BadRowError as error:
        return in_their_words(error, expected.names)


def _mixed(place: Place, found: DatasetFormat, expected: RowFormat) -> BadRowError | StageError:
    """With a format that the user named, a row of another is a bad row; with Auto nobody can say which is meant."""
    if expected.decided_by is None:
        return BadRowError(f"the row is {found}, dataset.format is {expected.form}", f"Write it as {expected.form}")
    decided = expected.decided_by.within(place.file)
    return StageError(
        Reason.DATASET_INVALID,
        f"{place}: the row is {found}, but {decided} is {expected.form}. Write all rows in one format, or set "
        f"dataset.format: {expected.form} and dataset.onBadRow: Skip.",
    )
