"""From rows as they were read to rows of tokens. A batch is made of nothing but itself: any process can make it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sluice_api.dataset import DatasetFormat
from sluice_api.reasons import Reason
from sluice_trainer.data.findings import Place
from sluice_trainer.data.formats import format_of, parse, renamed, unread
from sluice_trainer.data.read.batch import Batch, Fields
from sluice_trainer.data.row import BadRowError, Row
from sluice_trainer.data.tokenise import Tokenised, Tokeniser
from sluice_trainer.errors import StageError


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


@dataclass(frozen=True)
class Made:
    """What became of one row."""

    number: int
    refused: BadRowError | None = None
    tokenised: tuple[Tokenised, ...] = ()


@dataclass(frozen=True)
class MadeBatch:
    """What became of a task's rows, in their order."""

    made: Sequence[Made]
    error: StageError | None = None
    """What ends the preparation after these rows."""
    unread: frozenset[str] = field(default_factory=frozenset)
    """Fields that nothing reads."""


class RowMaker:
    """Makes tokens of rows, with one tokenizer and chat template."""

    def __init__(self, tokeniser: Tokeniser) -> None:
        self._tokeniser = tokeniser

    @property
    def chat_template(self) -> str:
        """The template that rows are rendered with; empty when the model has none."""
        return self._tokeniser.chat_template

    @property
    def added_tokens(self) -> dict[int, str]:
        """The tokens that were added to the vocabulary, by their ids."""
        return self._tokeniser.added_tokens

    def make(self, task: Task) -> MadeBatch:
        """Make a task's rows."""
        rows: list[tuple[int, Row | BadRowError]] = []
        ignored: set[str] = set()
        try:
            for number, found in _parsed(task):
                if isinstance(found, BadRowError):
                    rows.append((number, found))
                else:
                    row, fields = found
                    ignored |= unread(fields, task.format.form)
                    rows.append((number, row))
        except StageError as error:
            return MadeBatch(self._tokenised(rows), error)
        try:
            return MadeBatch(self._tokenised(rows), unread=frozenset(ignored))
        except StageError as error:
            return MadeBatch((), error)

    def _tokenised(self, rows: Sequence[tuple[int, Row | BadRowError]]) -> list[Made]:
        good = [row for _, row in rows if not isinstance(row, BadRowError)]
        tokenised = iter(self._tokeniser.tokenise(good))
        made = []
        for number, row in rows:
            become = row if isinstance(row, BadRowError) else next(tokenised)
            if isinstance(become, BadRowError):
                made.append(Made(number, refused=become))
            else:
                made.append(Made(number, tokenised=(become,)))
        return made


def _parsed(task: Task) -> Iterator[tuple[int, tuple[Row, Fields] | BadRowError]]:
    """Each row of a task.

    Raises:
        StageError: no row after this one can be read so.
    """
    expected = task.format
    for number, decoded in task.batch.decoded():
        if isinstance(decoded, BadRowError):
            yield number, decoded
            continue
        place = Place(task.file, task.unit, number)
        try:
            fields = renamed(decoded, expected.names)
            found = format_of(fields, expected.form, str(place), expected.names)
            if found != expected.form:
                raise _mixed(place, found, expected)
            yield number, (parse(fields, found, str(place)), fields)
        except BadRowError as error:
            yield number, error


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
