"""What was found while rows were read: which can't be trained on, and how many were too long."""

from dataclasses import dataclass, field

from sluice_api.dataset import BadRow
from sluice_api.reasons import Reason
from sluice_trainer.data.row import BadRowError
from sluice_trainer.errors import StageError

MAX_ROWS_SHOWN = 5
"""Bad rows that a message names."""


@dataclass(frozen=True)
class Place:
    """Where a row is: "datasets/rows.jsonl, line 3"."""

    file: str
    unit: str
    """line or row."""
    number: int
    """Counted from 1."""

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"

    def within(self, dataset: str) -> str:
        """The place without the file, where the dataset is this one file."""
        return f"{self.unit} {self.number}" if self.file == dataset else str(self)


@dataclass
class Findings:
    """What was found while a dataset was read and tokenised."""

    dataset: str
    """Its name in messages: the file's where it is one."""
    refused: int = 0
    refused_after_steps: int = 0
    """Of these, the rows that had passed all steps."""
    first_refused: list[tuple[Place, BadRowError]] = field(default_factory=list)
    """The first few, and why."""
    overlong_rows: int = 0
    """Rows of more than maxSequenceLength tokens, whatever overlongRows does with them."""
    first_overlong: list[Place] = field(default_factory=list)
    lost_characters: int = 0
    """Rows with U+FFFD in a text: what stands there was lost before."""
    first_lost: list[Place] = field(default_factory=list)

    def refuse(self, place: Place, error: BadRowError, *, after_steps: bool = False) -> None:
        """Note a row that can't be trained on."""
        self.refused += 1
        self.refused_after_steps += after_steps
        if len(self.first_refused) < MAX_ROWS_SHOWN:
            self.first_refused.append((place, error))

    def note_overlong(self, place: Place) -> None:
        """Note a row of too many tokens."""
        self.overlong_rows += 1
        if len(self.first_overlong) < MAX_ROWS_SHOWN:
            self.first_overlong.append(place)

    def note_lost(self, place: Place) -> None:
        """Note a row with characters that were lost."""
        self.lost_characters += 1
        if len(self.first_lost) < MAX_ROWS_SHOWN:
            self.first_lost.append(place)

    def lines(self) -> tuple[str, ...]:
        """The first refused rows, for PrepareResult.refused."""
        return tuple(f"{place.within(self.dataset)}: {error.problem}"[:200] for place, error in self.first_refused)

    def check(self, on_bad_row: BadRow, *, is_any_left: bool) -> None:
        """Fail unless bad rows are to be skipped.

        Args:
            on_bad_row: What the job says.
            is_any_left: Whether other rows can be trained on.

        Raises:
            StageError: DatasetInvalid or DatasetEmpty, naming up to five places.
        """
        skips = on_bad_row == BadRow.SKIP
        if self.refused == 0 or (is_any_left and skips):
            return
        otherwise = "or set dataset.onBadRow: Skip" if is_any_left else ""  # without another row, that is no way out
        if self.refused == 1:
            ((place, error),) = self.first_refused
            message = f"{place}: {error.problem}. {error.remedy}{otherwise and f', {otherwise}'}."
        else:
            begins = (
                f"{self.dataset} has {self.refused} rows that can't be trained on. Mend them, {otherwise}."
                if is_any_left
                else f"{self.dataset}: none of its {self.refused} rows can be trained on."
            )
            more = [f"and {self.refused - MAX_ROWS_SHOWN} more."] if self.refused > MAX_ROWS_SHOWN else []
            message = "\n".join([begins, *self._by_problem(), *more])
        raise StageError(Reason.DATASET_EMPTY if skips else Reason.DATASET_INVALID, message)

    def _by_problem(self) -> list[str]:
        """The first refused rows, those of a file with the same problem on one line."""
        alike: dict[tuple[str, str, str], list[str]] = {}
        for place, error in self.first_refused:
            file = "" if place.file == self.dataset else f"{place.file}, "
            alike.setdefault((f"{error.problem}. {error.remedy}.", file, place.unit), []).append(str(place.number))
        return [
            f"{file}{unit}{'s' * (len(numbers) > 1)} {', '.join(numbers)}: {what}"
            for (what, file, unit), numbers in alike.items()
        ]
