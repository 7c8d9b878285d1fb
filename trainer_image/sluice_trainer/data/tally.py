"""What the steps have done to all rows, and the one decision that needs to know the others: was a row there before?"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sluice_api.data_report import DropCount, StepExample, StepReport
from sluice_trainer.data.findings import Place
from sluice_trainer.data.make import Drop, MadeBatch, Piece
from sluice_trainer.data.steps.deduplicate import DropDuplicates
from sluice_trainer.data.steps.step import RowStep
from sluice_trainer.data.tokenise import Tokenised

_EXAMPLES = 3
_DUPLICATE = "duplicate"


@dataclass
class _OfOne:
    """What one step has done."""

    name: str
    rows_in: int = 0
    rows_out: int = 0
    changed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_examples: list[StepExample] = field(default_factory=list)
    changed_examples: list[StepExample] = field(default_factory=list)


class Tally:
    """Counts rows in and out of each step, in the order of the rows."""

    def __init__(self, steps: Sequence[RowStep | DropDuplicates]) -> None:
        self._steps = [_OfOne(step.name) for step in steps]
        self._seen = {index: step.seen() for index, step in enumerate(steps) if isinstance(step, DropDuplicates)}

    def passing(self, pieces: Sequence[Piece], place: str) -> Iterator[Piece]:
        """Of the pieces of one row of the dataset, those that no step has dropped; all are counted.

        Args:
            pieces: In order.
            place: Where the row is.
        """
        is_new: dict[int, bool] = {}
        """By step; a piece shares it with the one before it, as long as they were one."""
        for piece in pieces:
            is_new = {index: new for index, new in is_new.items() if index < piece.since}
            ended = piece.ended
            stays = isinstance(piece.end, Tokenised) and len(piece.end.rows) > 0
            drop = piece.end if isinstance(piece.end, Drop) else None
            for compared in piece.compared:
                index = compared.step
                if index not in is_new:  # a row that is refused anyway is no reason to drop its copy
                    seen, signature = self._seen[index], compared.signature
                    is_new[index] = seen.is_new(signature) if stays else not seen.knows(signature)
                if not is_new[index]:
                    ended, drop = index, Drop(_DUPLICATE, compared.example)
                    break
            self._count(piece, ended, drop, place)
            if ended == len(self._steps):
                yield piece

    def _count(self, piece: Piece, ended: int, drop: Drop | None, place: str) -> None:
        if ended < piece.since:
            return  # it was one with the piece before it then, and is counted with that
        if piece.since:
            self._steps[piece.since - 1].rows_out += 1
        for index in range(piece.since, min(ended + 1, len(self._steps))):
            step = self._steps[index]
            step.rows_in += 1
            step.rows_out += index < ended
            step.changed += index in piece.changed and index < ended
        if drop is not None:
            step = self._steps[ended]
            step.dropped[drop.why] += 1
            if len(step.dropped_examples) < _EXAMPLES:
                step.dropped_examples.append(StepExample(place=place, why=drop.why, before=drop.example))

    def show(self, batch: MadeBatch, file: str, unit: str) -> None:
        """Keep a batch's first examples of what steps have changed."""
        for change in batch.changes:
            examples = self._steps[change.step].changed_examples
            if len(examples) < _EXAMPLES:
                place = Place(file, unit, change.number)
                examples.append(StepExample(place=str(place), before=change.before, after=change.after))

    def reports(self) -> tuple[StepReport, ...]:
        """What each step has done."""
        return tuple(
            StepReport(
                name=step.name,
                rows_in=step.rows_in,
                rows_out=step.rows_out,
                changed=step.changed,
                dropped_rows=step.dropped.total(),
                dropped=tuple(DropCount(why=why, rows=rows) for why, rows in step.dropped.most_common()),
                examples=(*step.dropped_examples[:2], *step.changed_examples, *step.dropped_examples[2:]),
            )
            for step in self._steps
        )
