"""Which rows have been there before, in little memory: tables with open addressing, without an object for each row."""

from array import array
from collections.abc import Iterator

import numpy as np

from sluice_trainer.data.steps.signature import SLOTS, Signature

_FULLEST = 0.75
"""Share of a table's places that are taken before it is made twice as large."""
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1
_FIRST_BITS = 10
_BANDS = 16


class Hashes:
    """A set of hashes of 64 bits: 11 to 22 bytes each."""

    def __init__(self) -> None:
        self._bits = _FIRST_BITS
        self._table = array("Q", bytes(8 << self._bits))
        self._count = 0
        self._has_zero = False  # zero is an empty place

    def __len__(self) -> int:
        return self._count + self._has_zero

    def __contains__(self, value: int) -> bool:
        return self._has_zero if value == 0 else self._table[self._place(value)] == value

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return len(self._table) * self._table.itemsize

    def add(self, value: int) -> bool:
        """Put a hash into the set; whether it is new."""
        if value == 0:
            is_new, self._has_zero = not self._has_zero, True
            return is_new
        place = self._place(value)
        if self._table[place] == value:
            return False
        self._table[place] = value
        self._count += 1
        if self._count > _FULLEST * len(self._table):
            self._grow()
        return True

    def _place(self, value: int) -> int:
        """Where it is, or the empty place where it belongs."""
        table, last = self._table, len(self._table) - 1
        place = ((value * _GOLDEN) & _WORD) >> (64 - self._bits)
        while (found := table[place]) and found != value:
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        old = self._table
        self._bits += 1
        self._table = array("Q", bytes(8 << self._bits))
        for value in old:
            if value:
                self._table[self._place(value)] = value


class Sketches:
    """Sketches of rows, found by likeness: 128 bytes each, and 85 to 171 more for the tables.

    Sketches are compared that are equal in one of 16 bands. The tables keep the number of the row alone; the band
    itself is in the sketch. Of the rows with the same band only the first is found by it.
    """

    def __init__(self, near: float) -> None:
        self._near = near
        self._rows = bytearray()
        self._bits = _FIRST_BITS
        width = _band_width(near)
        self._bands = [slice(band * width, (band + 1) * width) for band in range(_BANDS)]
        self._tables = self._empty_tables()

    def find(self, sketch: bytes) -> int | None:
        """The number of a row that is as like it as was asked for, or None."""
        return next(
            (row for row in dict.fromkeys(self._alike(sketch)) if self._likeness(row, sketch) >= self._near), None
        )

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return len(self._rows) + sum(len(table) * table.itemsize for table in self._tables)

    def add(self, sketch: bytes) -> None:
        """Put a row's sketch there. Its number is how many there were before."""
        self._rows += sketch
        count = len(self._rows) // SLOTS
        if count > _FULLEST * len(self._tables[0]):
            self._bits += 1
            self._tables = self._empty_tables()
            for row in range(count):
                self._enter(row)
        else:
            self._enter(count - 1)

    def _empty_tables(self) -> list["array[int]"]:
        return [array("I", bytes(4 << self._bits)) for _ in self._bands]

    def _enter(self, row: int) -> None:
        sketch = self._sketch(row)
        for table, band in zip(self._tables, self._bands, strict=True):
            place = self._place(table, band, sketch)
            if not table[place]:
                table[place] = row + 1  # zero is an empty place

    def _alike(self, sketch: bytes) -> Iterator[int]:
        for table, band in zip(self._tables, self._bands, strict=True):
            if row := table[self._place(table, band, sketch)]:
                yield row - 1

    def _place(self, table: "array[int]", band: slice, sketch: bytes) -> int:
        """Where a row with the same band is, or the empty place where it belongs."""
        rows, wanted, last = self._rows, sketch[band], len(table) - 1
        begin, end = band.start - SLOTS, band.stop - SLOTS  # rows are counted from 1 in the tables
        place = ((int.from_bytes(wanted, "little") * _GOLDEN) & _WORD) >> (64 - self._bits)
        while (row := table[place]) and rows[row * SLOTS + begin : row * SLOTS + end] != wanted:
            place = (place + 1) & last
        return place

    def _sketch(self, row: int) -> bytes:
        return bytes(self._rows[row * SLOTS : (row + 1) * SLOTS])

    def _likeness(self, row: int, sketch: bytes) -> float:
        """The estimated share of runs that two rows have in common; bytes are equal by chance once in 256."""
        equal = np.count_nonzero(np.frombuffer(self._sketch(row), np.uint8) == np.frombuffer(sketch, np.uint8))
        return (int(equal) / SLOTS - 1 / 256) / (1 - 1 / 256)


class Seen:
    """The rows that have been seen: 11 to 22 bytes each, and with near duplicates 213 to 299 more."""

    def __init__(self, near: float | None) -> None:
        """Remember rows.

        Args:
            near: The share of runs of words from which rows are near duplicates, from 0 to 1; None: only equal ones.
        """
        self._exact = Hashes()
        self._sketches = None if near is None else Sketches(near)

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return self._exact.nbytes + (0 if self._sketches is None else self._sketches.nbytes)

    def is_new(self, signature: Signature) -> bool:
        """Whether no row like it was seen before. Only new rows are remembered."""
        if self.knows(signature):
            return False
        self._exact.add(signature.exact)
        if self._sketches is not None and signature.sketch:
            self._sketches.add(signature.sketch)
        return True

    def knows(self, signature: Signature) -> bool:
        """Whether a row like it was seen. It is not remembered, so rows can be looked for among others."""
        if signature.exact in self._exact:
            return True
        return (
            self._sketches is not None and bool(signature.sketch) and self._sketches.find(signature.sketch) is not None
        )


def _band_width(near: float) -> int:
    """The most bytes of a band with which 97 of 100 rows that are just as like as that have one in common."""
    widths = range(SLOTS // _BANDS, 0, -1)
    return next((width for width in widths if 1 - (1 - near**width) ** _BANDS >= 0.97), 1)
