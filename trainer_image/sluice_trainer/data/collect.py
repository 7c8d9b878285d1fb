"""Takes in what becomes of the rows, batch by batch: tokens go to the disk, and of each row little stays in memory."""

import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from sluice_api.data_report import MAX_FILES, MAX_UNREAD_FIELDS
from sluice_api.dataset import Dataset
from sluice_api.reasons import Reason
from sluice_api.sources import is_object
from sluice_api.stages import StageSpec
from sluice_trainer import logs, paths
from sluice_trainer.base_model import BaseModel
from sluice_trainer.data.fetch import dataset_name, small_file
from sluice_trainer.data.findings import Findings, Place
from sluice_trainer.data.make import Made, MadeBatch, Piece, RowMaker, Task
from sluice_trainer.data.near_misses import in_their_words
from sluice_trainer.data.parallel import MakerSettings, make_all, processes_for
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.data.row import BadRowError
from sluice_trainer.data.source import Source
from sluice_trainer.data.split import key_of
from sluice_trainer.data.steps.signature import SLOTS
from sluice_trainer.data.steps.word_list import phrases_in
from sluice_trainer.data.tally import Tally
from sluice_trainer.data.tokenise import Tokenised
from sluice_trainer.errors import StageError
from sluice_trainer.token_rows import RowWriter, TokenRow
from sluice_trainer.work_folder import WorkFolder

FORECAST_AFTER_SECONDS = 60
_BLOCK_ROWS = 2**16
"""Rows that are looked at at once, so that what is worked out of them takes little memory."""
_HASHES = "Hashes of the rows, by which they are compared"
_VOCABULARY = 2**20
"""More tokens than any model knows; a row's own number of tokens says nothing about it."""


class Known:
    """What each row says, as hashes, on this machine's disk: by it rows are compared once all are there.

    A row of the dataset that was cut into several is known by its first.
    """

    KEYS = np.dtype([("key", np.uint64), ("question", np.uint64), ("answer", np.uint64), ("sketch", np.uint8, SLOTS)])
    """key: split.key_of. question, answer: steps.keys; 0 for none. sketch: zeros for none."""

    def __init__(self) -> None:
        self._file = TemporaryFile(dir=paths.scratch_folder("rows"))  # noqa: SIM115 - it has no name, and ends with us
        self._length = 0

    def append(self, rows: Sequence[tuple[int, Piece]]) -> None:
        """Add rows, each with its key."""
        added = np.zeros(len(rows), self.KEYS)
        for index, (key, piece) in enumerate(rows):
            sketch = np.frombuffer(piece.sketch or bytes(SLOTS), np.uint8)
            added[index] = (key, piece.question or 0, piece.answer or 0, sketch)
        with paths.writing_scratch(_HASHES):
            self._file.write(added.tobytes())
        self._length += len(rows)

    def read(self) -> NDArray[np.void]:
        """All of them, mapped."""
        with paths.writing_scratch(_HASHES):
            self._file.flush()
        if not self._length:
            return np.zeros(0, self.KEYS)
        return np.memmap(self._file, self.KEYS, "r", shape=(self._length,))


@dataclass
class Collected:
    """What is known of all rows. Those of one row of the dataset follow each other, in the order of the files."""

    writer: RowWriter
    findings: Findings
    seed: int
    maker: RowMaker
    """Has made them, or what other processes made them like."""
    limit: int
    """Tokens of a row at most."""
    tally: Tally
    known: Known = field(default_factory=Known)
    firsts: "array[int]" = field(default_factory=lambda: array("q"))
    """Of each row of the dataset: the index of the first row of tokens that it has become."""
    sources: "array[int]" = field(default_factory=lambda: array("H"))
    """Of each row of the dataset: the index of its source."""
    used: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_VOCABULARY, np.bool_))
    """Of each token: whether a row has it."""
    longest_row: int = 0
    rows_read: "Counter[int]" = field(default_factory=Counter)
    """By the index of the file."""
    unread: dict[int, set[str]] = field(default_factory=dict)
    """Fields that nothing reads, by the index of the file: as many as a report shows, or a few more."""
    named: dict[int, set[str]] = field(default_factory=dict)
    """Of its fields, the formats' names of those that a row has, by the index of the source."""
    languages: Counter[str] = field(default_factory=Counter)
    forecast_seconds: int | None = None
    """How long all rows take, where that is longer than the stage may."""

    def take(self, source: int, file: int, task: Task, batch: MadeBatch) -> None:
        """Take in a batch.

        Args:
            source: Index of the source.
            file: Index of the file, among those of all sources.
            task: What was to be made.
            batch: What was made.

        Raises:
            StageError: the batch ends with it.
        """
        if file < MAX_FILES and len(names := self.unread.setdefault(file, set())) < MAX_UNREAD_FIELDS:
            names |= batch.unread
        self.named.setdefault(source, set()).update(batch.named)
        self.languages += batch.languages
        self.tally.show(batch, task.file, task.unit)
        self.rows_read[file] += len(batch.made)
        for number in batch.lost:
            self.findings.note_lost(Place(task.file, task.unit, number))
        added: list[TokenRow] = []
        known: list[tuple[int, Piece]] = []
        for made in batch.made:
            rows, pieces = self._rows_of(file, task, made)
            if not rows:
                continue
            known.append((key_of(rows, self.seed), pieces[0]))
            self.firsts.append(len(self.writer) + len(added))
            self.sources.append(source)
            added += rows
        if added:
            self.writer.append(added)
            self.known.append(known)
            self.used[np.concatenate([row.input_ids for row in added])] = True
            self.longest_row = max(self.longest_row, *(len(row.input_ids) for row in added))
        if batch.error is not None:
            raise batch.error

    def _rows_of(self, file: int, task: Task, made: Made) -> tuple[list[TokenRow], list[Piece]]:
        """The rows of tokens that a row of the dataset has become, and of what."""
        place = Place(task.file, task.unit, made.number)
        if isinstance(made.pieces, BadRowError):
            self.findings.refuse(place, made.pieces)
            return [], []
        rows: list[TokenRow] = []
        pieces: list[Piece] = []
        is_overlong = False
        for piece in self.tally.passing(made.pieces, str(place)):
            if isinstance(piece.end, BadRowError):
                self.findings.refuse(place, in_their_words(piece.end, task.format.names), after_steps=True)
            elif isinstance(piece.end, Tokenised):
                is_overlong |= piece.end.overlong
                rows += [TokenRow(row.input_ids, row.loss_mask, made.number, row.split, file) for row in piece.end.rows]
                pieces.append(piece)
        if is_overlong:
            self.findings.note_overlong(place)
        return rows, pieces

    @property
    def chat_template(self) -> str:
        """What the rows were rendered with."""
        return self.maker.chat_template

    def parts(self, row: TokenRow) -> list[tuple[str, bool]]:
        """The text of a row in its parts, each with whether the loss counts it."""
        return self.maker.parts(row)

    def rows_of(self, chosen: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the rows of tokens that some rows of the dataset have become, each so many times."""
        firsts = np.frombuffer(self.firsts, np.int64) if self.firsts else np.empty(0, np.int64)
        edges = np.append(firsts, len(self.writer))
        parts = [np.empty(0, np.int64)]
        for begin in range(0, len(chosen), _BLOCK_ROWS):
            block, counts = chosen[begin : begin + _BLOCK_ROWS], times[begin : begin + _BLOCK_ROWS]
            starts, lengths = np.repeat(edges[block], counts), np.repeat(edges[block + 1] - edges[block], counts)
            offsets = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            parts.append(np.repeat(starts, lengths) + offsets)
        return np.concatenate(parts)


def collect(
    stage: StageSpec,
    base: BaseModel,
    template: str | None,
    words: Mapping[str, Sequence[str]],
    files: Sequence[Sequence[RowFile]],
    work: WorkFolder,
    folder: Path,
) -> tuple[Collected, list[Source]]:
    """Read, check and tokenise all rows, into a folder.

    Args:
        stage: The job.
        base: Its model.
        template: The chat template, instead of the model's own.
        words: words_of the dataset.
        files: Of each of dataset.all_files.
        work: The job's own folder.
        folder: Where in it the rows of tokens go.
    """
    spec = stage.spec
    settings = MakerSettings(
        base, template, _longest(stage, base), spec.training.overlong_rows, spec.dataset.steps, words
    )
    maker = settings.maker()
    sources = [Source(said, its) for said, its in zip(spec.dataset.all_files, files, strict=True)]
    all_of_them = [file for its in files for file in its]
    name = all_of_them[0].name if len(all_of_them) == 1 else _name_of(spec.dataset.shown)
    with work.writing():
        writer = RowWriter(folder)
    collected = Collected(writer, Findings(name), spec.training.seed, maker, settings.longest, Tally(maker.steps))
    size = sum(source.bytes for source in sources)
    began = time.monotonic()
    with closing(
        make_all(_tasks(sources, held_out=spec.dataset.validation is not None), maker, processes_for(size), settings)
    ) as all_made:
        for (source, file), task, made in all_made:
            with work.writing():
                collected.take(source, file, task, made)
            if collected.forecast_seconds is None:
                done, seconds = sum(each.read_bytes for each in sources), time.monotonic() - began
                collected.forecast_seconds = forecast(done, size, seconds, spec.stage_deadline_seconds)
                if collected.forecast_seconds is not None:
                    message = too_slow(name, collected.forecast_seconds, spec.stage_deadline_seconds)
                    logs.warning("Prepare is too slow", message=message)
    with work.writing():
        writer.close()
    return collected, sources


def forecast(done: float, size: float, seconds: float, deadline: int) -> int | None:
    """How many seconds all rows take, if that is more than there are.

    Args:
        done: Bytes of rows that were read.
        size: Bytes of all rows, as far as they can be known before.
        seconds: How long that took.
        deadline: How long the stage may take.

    Returns:
        None where the time is enough, or it is too early to tell.
    """
    if seconds < FORECAST_AFTER_SECONDS or not done:
        return None
    needed = seconds * size / done
    return round(needed) if needed > deadline else None


def too_slow(dataset: str, seconds: int, deadline: int) -> str:
    """What to do about rows that take longer than the stage may."""
    return (
        f"To prepare {dataset} takes about {seconds / 3600:.1f} hours, and stageDeadlineSeconds {deadline} ends "
        f"Prepare before that. Set stageDeadlineSeconds: {round_up(seconds)} in a new job, or tokenise the rows "
        "elsewhere and give them as Parquet with input_ids and labels (dataset.format: Tokens)."
    )


def round_up(seconds: int) -> int:
    """Half more than the time that is expected, in whole hours, in seconds."""
    return -(-seconds * 3 // (2 * 3600)) * 3600


def _tasks(sources: Sequence[Source], *, held_out: bool) -> Iterator[tuple[tuple[int, int], Task]]:
    """All rows, each batch with the indices of its source and of its file, among all files.

    Args:
        sources: In the order of dataset.all_files.
        held_out: Whether the last one has the rows that are held out. They come first, so that of a row on both sides
            a `deduplicate` drops the one that would be trained on.
    """
    before = [0, *accumulate(len(source.units) for source in sources)]
    order = [*range(len(sources))]
    for index in [*order[-1:], *order[:-1]] if held_out else order:
        for file, task in sources[index].tasks():
            yield (index, before[index] + file), task


def words_of(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """The words of each file that a filter names, by its address.

    Raises:
        StageError: one can't be read, or is no list of words.
    """
    found = {}
    for field_, uri in dataset.addresses.items():
        if field_.endswith("wordsFrom"):
            credentials = dataset.credentials if is_object(uri) else None
            content = small_file(uri, field_, credentials, "dataset.credentials", Reason.DATASET_NOT_FOUND)
            try:
                found[uri] = phrases_in(content)
            except ValueError as error:
                raise StageError(Reason.DATASET_INVALID, f"{field_} {uri}: {error}") from error
    return found


def _longest(stage: StageSpec, base: BaseModel) -> int:
    """The longest row in tokens: what the user asked for, or as many positions as the model knows."""
    asked = stage.spec.training.max_sequence_length
    if base.longest_sequence is None or asked <= base.longest_sequence:
        return asked
    logs.warning("maxSequenceLength is more than the model knows", asked=asked, used=base.longest_sequence)
    return base.longest_sequence


def _name_of(uris: Sequence[str]) -> str:
    """Several addresses as messages show them."""
    return ", ".join(map(dataset_name, uris[:3])) + (", ..." if len(uris) > 3 else "")
