"""The rows of one source, as tasks: its files one after another, and the format that its first row decides."""

from collections import Counter
from collections.abc import Iterator, Sequence

from sluice_api.dataset import DatasetFormat, FileFormat, RowFiles
from sluice_api.reasons import Reason
from sluice_trainer.data.fetch import dataset_name
from sluice_trainer.data.findings import Place
from sluice_trainer.data.formats import format_of, renamed
from sluice_trainer.data.make import RowFormat, Task
from sluice_trainer.data.near_misses import quoted
from sluice_trainer.data.read.batch import Batch
from sluice_trainer.data.read.read import about_bytes, read, unit_of
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.data.row import BadRowError
from sluice_trainer.errors import StageError

_FIRST_BATCHES, _OF_BATCHES = 8, 16
"""In which batches languages are looked for, which takes long: in the first ones, then in one of so many."""


class Source:
    """Files whose rows are read in one way."""

    def __init__(self, said: RowFiles, files: Sequence[RowFile]) -> None:
        """Read these files, in their order.

        Args:
            said: What the job says of them.
            files: Where they are.

        Raises:
            StageError: one can't be opened, or is damaged.
        """
        self._said = said
        self._files = files
        names = said.fields.model_dump(exclude_none=True)
        if twice := [name for name, times in Counter(names.values()).items() if times > 1]:
            raise StageError(
                Reason.DATASET_INVALID,
                f"dataset.fields names {quoted(twice)} more than once: {self.name} would be read so that one field is "
                "two. Name each field once.",
            )
        self.format = RowFormat(said.format, names)
        """Auto until a row has decided it."""
        self._batches = 0
        self.file_formats = [FileFormat.AUTO] * len(files)
        """Of each file: how it holds rows, once it is read."""
        self._bytes = [about_bytes(file) for file in files]
        self.bytes = sum(self._bytes)
        """About how many all files have, unpacked."""
        self.read_bytes = 0.0
        """Of these."""

    @property
    def name(self) -> str:
        """Its address, as messages show it."""
        return dataset_name(self._said.uri or "")

    @property
    def units(self) -> list[str]:
        """Of each file: what the numbers of its rows count."""
        return [unit_of(file_format) for file_format in self.file_formats]

    def tasks(self) -> Iterator[tuple[int, Task]]:
        """All rows, each batch with the index of its file.

        Raises:
            StageError: a file can't be read, or its first row can be read in two ways.
        """
        before = 0
        for index, file in enumerate(self._files):
            with read(file, self._said.file_format) as reading:
                self.file_formats[index] = reading.file_format
                unit = unit_of(reading.file_format)
                for batch in reading.batches:
                    if self.format.form is DatasetFormat.AUTO:
                        self._decide(batch, file, unit)
                    self.read_bytes = before + reading.done() * self._bytes[index]
                    languages = self._batches < _FIRST_BATCHES or self._batches % _OF_BATCHES == 0
                    yield index, Task(batch, file.name, unit, self.format, languages)
                    self._batches += 1
            before += self._bytes[index]

    def _decide(self, batch: Batch, file: RowFile, unit: str) -> None:
        for number, decoded in batch.decoded():
            place = Place(file.name, unit, number)
            if isinstance(decoded, BadRowError):
                continue
            names = self.format.names
            try:
                form = format_of(renamed(decoded, names), DatasetFormat.AUTO, str(place), names)
            except BadRowError:
                continue
            self.format = RowFormat(form, names, place)
            return
