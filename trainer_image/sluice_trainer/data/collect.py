"""Takes in what becomes of the rows, batch by batch: tokens go to the disk, and of each row little stays in memory."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sluice_api.stages import StageSpec
from sluice_trainer import logs, paths
from sluice_trainer.base_model import BaseModel
from sluice_trainer.data.fetch import dataset_name
from sluice_trainer.data.findings import Findings, Place
from sluice_trainer.data.make import Made, MadeBatch, Task
from sluice_trainer.data.parallel import MakerSettings, make_all, processes_for
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.data.source import Source
from sluice_trainer.data.split import key_of
from sluice_trainer.prepared import RowWriter, TokenRow

_VOCABULARY = 2**20
"""More tokens than any model knows; a row's own number of tokens says nothing about it."""


@dataclass
class Collected:
    """What is known of all rows. Those of one row of the dataset follow each other, in the order of the files."""

    writer: RowWriter
    findings: Findings
    seed: int
    chat_template: str
    """What the rows were rendered with."""
    added_tokens: dict[int, str]
    """Those of the tokenizer that were added to its vocabulary."""
    keys: "array[int]" = field(default_factory=lambda: array("Q"))
    """Of each row of the dataset: split.key_of what it has become."""
    firsts: "array[int]" = field(default_factory=lambda: array("q"))
    """Of each row of the dataset: the index of the first row of tokens that it has become."""
    sources: "array[int]" = field(default_factory=lambda: array("H"))
    """Of each row of the dataset: the index of its source."""
    used: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_VOCABULARY, np.bool_))
    """Of each token: whether a row has it."""
    loss_tokens: int = 0
    longest_row: int = 0
    rows_read: int = 0

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
        added: list[TokenRow] = []
        for made in batch.made:
            added += self._take_row(source, file, task, made, len(self.writer) + len(added))
        if added:
            self.writer.append(added)
            self.used[np.concatenate([row.input_ids for row in added])] = True
        if batch.error is not None:
            raise batch.error

    def _take_row(self, source: int, file: int, task: Task, made: Made, first: int) -> list[TokenRow]:
        self.rows_read += 1
        if made.refused is not None:
            self.findings.refuse(Place(task.file, task.unit, made.number), made.refused)
            return []
        rows = [
            TokenRow(row.input_ids, row.loss_mask, made.number, row.split, file)
            for tokenised in made.tokenised
            for row in tokenised.rows
        ]
        self.findings.overlong_rows += any(tokenised.overlong for tokenised in made.tokenised)
        if rows:
            self.keys.append(key_of(rows, self.seed))
            self.firsts.append(first)
            self.sources.append(source)
            self.loss_tokens += sum(int(row.loss_mask.sum()) for row in rows)
            self.longest_row = max(self.longest_row, *(len(row.input_ids) for row in rows))
        return rows

    def rows_of(self, chosen: NDArray[np.int64], times: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the rows of tokens that some rows of the dataset have become, each so many times."""
        firsts = np.frombuffer(self.firsts, np.int64) if self.firsts else np.empty(0, np.int64)
        ends = np.append(firsts[1:], len(self.writer))
        lengths = (ends - firsts)[chosen]
        starts, lengths = np.repeat(firsts[chosen], times), np.repeat(lengths, times)
        offsets = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.repeat(starts, lengths) + offsets


def collect(
    stage: StageSpec, base: BaseModel, files: Sequence[Sequence[RowFile]], folder: Path
) -> tuple[Collected, list[Source]]:
    """Read, check and tokenise all rows, into a folder.

    Args:
        stage: The job.
        base: Its model.
        files: Of each of dataset.all_files.
        folder: Where the rows of tokens go.
    """
    spec = stage.spec
    settings = MakerSettings(base, _longest(stage, base), spec.training.overlong_rows)
    maker = settings.maker()
    sources = [Source(said, its) for said, its in zip(spec.dataset.all_files, files, strict=True)]
    all_of_them = [file for its in files for file in its]
    name = all_of_them[0].name if len(all_of_them) == 1 else _name_of(spec.dataset.uris)
    with paths.writing(stage):
        writer = RowWriter(folder)
    collected = Collected(writer, Findings(name), spec.training.seed, maker.chat_template, maker.added_tokens)
    tasks = (((index, file), task) for index, source in enumerate(sources) for file, task in source.tasks())
    before = np.cumsum([0, *map(len, files)]).tolist()
    processes = processes_for(sum(file.path.stat().st_size for file in all_of_them))
    for (source, file), task, made in make_all(tasks, maker, processes, settings):
        with paths.writing(stage):
            collected.take(source, before[source] + file, task, made)
    with paths.writing(stage):
        writer.close()
    return collected, sources


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
