"""The histogram of lengths."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.data_report import LengthBin
from sluice_trainer.data.report.figures import duration, size
from sluice_trainer.data.report.histogram import Histogram
from sluice_trainer.data.report.lengths import lengths_of


@given(st.lists(st.integers(1, 131_072), min_size=1, max_size=300))
def test_every_row_is_in_one_bin_and_the_shares_are_right(lengths: list[int]) -> None:
    found = lengths_of(np.bincount(lengths), 512)
    assert sum(each.rows for each in found.bins) == len(lengths)
    edges = [(each.first, each.last) for each in found.bins]
    assert edges[0][0] == 0
    assert edges[-1][1] == found.longest == max(lengths)
    assert all(last + 1 == first for (_, last), (first, _) in pairwise(edges))
    assert len(edges) <= 40
    for share, length in ((0.5, found.median), (0.9, found.p90), (0.99, found.p99)):
        assert sum(each <= length for each in lengths) >= share * len(lengths) - 1e-9
        assert sum(each < length for each in lengths) < share * len(lengths) + 1e-9


def test_one_long_row_does_not_press_all_others_into_one_bin() -> None:
    counts = np.zeros(100_001, np.int64)
    counts[10:200] = 50
    counts[100_000] = 1
    found = lengths_of(counts, 512)
    assert sum(each.rows > 0 for each in found.bins) > 15
    assert found.bins[-1] == LengthBin(first=found.bins[-1].first, last=100_000, rows=found.bins[-1].rows)


def test_no_rows_have_no_bins() -> None:
    assert lengths_of([], 512).bins == ()
    assert Histogram.of(lengths_of([], 512)).bars == ()


def test_bars_are_within_the_picture_and_the_limit_stands_where_it_is() -> None:
    picture = Histogram.of(lengths_of([0, 4, 0, 2, 1], 2))
    assert [round(bar.height) for bar in picture.bars] == [0, 178, 0, 89, 44]
    assert all(bar.x >= 44 and bar.x + bar.width <= 712 and bar.y >= 18 for bar in picture.bars)
    assert picture.limit is not None
    assert picture.bars[2].x <= picture.limit.x + 1 <= picture.bars[3].x
    assert Histogram.of(lengths_of([0, 4], 512)).limit is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3540, "59 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_duration_is_said_in_two_units_at_most(seconds: int, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (2048, "2 KiB"),
        (740 << 20, "740 MiB"),
        (int(12.4 * 2**30), "12.4 GiB"),
        (3 << 40, "3,072 GiB"),
    ],
)
def test_size_is_said_with_three_digits(value: int, text: str) -> None:
    assert size(value) == text
