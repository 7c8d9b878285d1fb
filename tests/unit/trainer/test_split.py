"""Which rows are held out: the same as in all versions before, in little memory."""

import hashlib
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sluice_trainer.data.split import held_out

KEYS = np.random.default_rng(7).integers(0, 2**63, 1000, dtype=np.uint64)


def plainly_held_out(keys: list[int], share: float) -> list[bool]:
    """From the lowest key on, all rows of each for which there is room; at least those of one."""
    copies = Counter(keys)
    if share == 0 or len(copies) < 2:
        return [False] * len(keys)
    room, chosen = max(1, round(share * len(keys))), set()
    for key in sorted(copies):
        if copies[key] <= room:
            chosen.add(key)
            room -= copies[key]
    chosen = chosen or {min(copies, key=lambda key: (copies[key], key))}
    return [key in chosen for key in keys]


@given(st.lists(st.integers(0, 12), max_size=40), st.sampled_from([0, 0.01, 0.1, 0.25, 0.49, 0.9]))
def test_rows_of_the_lowest_keys_are_held_out(keys: list[int], share: float) -> None:
    assert held_out(np.array(keys, np.uint64), share).tolist() == plainly_held_out(keys, share)


@pytest.mark.parametrize(
    ("name", "keys", "share", "count", "digest"),
    [
        ("rows of their own", KEYS, 0.1, 100, "3509bd8fbe2f3772"),
        ("one in seven is the same", np.where(np.arange(1000) % 7, KEYS, KEYS[3]), 0.1, 100, "6aa1b6007c20e745"),
        ("each three times", np.repeat(KEYS[:100], 3), 0.1, 30, "8b14d6b159fa4116"),
        ("too many of each", np.repeat(KEYS[:4], [5, 3, 3, 9]), 0.05, 3, "fc9aa3506c7a7ff2"),
        ("no more fit", KEYS % np.uint64(40), 0.5, 488, "6c374270ef48ae15"),
    ],
)
def test_held_out_rows_are_those_that_earlier_versions_chose(
    name: str, keys: NDArray[np.uint64], share: float, count: int, digest: str
) -> None:
    out = held_out(keys, share)
    assert (int(out.sum()), hashlib.sha256(out.tobytes()).hexdigest()[:16]) == (count, digest)


def test_split_takes_few_bytes_a_row() -> None:
    """Ten million rows must fit into Prepare's memory, beside all else."""
    keys = np.random.default_rng(7).integers(0, 2**63, 500_000, dtype=np.uint64)
    tracemalloc.start()
    held_out(keys, 0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / len(keys) < 16
