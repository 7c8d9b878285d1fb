"""deduplicate: drops rows that were there before. The first stays.

A row's signature can be worked out anywhere; whether it is new is decided in the order of the rows, in one place.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from sluice_api.data_steps import Deduplicate
from sluice_trainer.data.row import Conversation, Pair, Passage, Row, Turn
from sluice_trainer.data.steps.seen import Seen
from sluice_trainer.data.steps.signature import SLOTS, Signature
from sluice_trainer.data.steps.step import reasoning_of, turns_of
from sluice_trainer.data.steps.words import blocks, words_of

_RUN = 5
"""Words of a run that rows share; characters, in scripts that write no spaces."""
_SEED = 1


@dataclass(frozen=True)
class DropDuplicates:
    """The step `deduplicate`, in two halves: `signature` in any process, `seen` in one."""

    spec: Deduplicate
    name: str = "deduplicate"

    def signature(self, row: Row) -> Signature:
        """What a row is known by."""
        return signature(row, near=self.spec.near is not None)

    def seen(self) -> Seen:
        """A memory for rows, which has seen none yet."""
        return Seen(None if self.spec.near is None else float(self.spec.near))


def signature(row: Row, *, near: bool) -> Signature:
    """What a row is known by: a hash of all that it says and, for near duplicates, a sketch of its runs of words.

    Case, punctuation and white space make no difference. System turns and the tools on offer are in the hash only:
    most sets have the same in all rows, which would make all rows alike. Texts of fewer than five words have no sketch.
    """
    return Signature(hash_of(*_said(row)), sketch(row) if near else b"")


def hash_of(*texts: str) -> int:
    """A hash of 64 bits of some texts, whose words count and nothing else. A text without words counts as it is."""
    digest = blake2b(digest_size=8)
    for text in texts:
        has_words = False
        for block in blocks(text):
            if words := words_of(block):
                digest.update(f"{' '.join(words)} ".encode("utf-8", "surrogatepass"))
                has_words = True
        digest.update(b"\n" if has_words else text.strip().encode("utf-8", "surrogatepass") + b"\n")
    return int.from_bytes(digest.digest(), "little")


def turn_texts(turn: Turn, *, reasoning: bool) -> Iterator[str]:
    """Who speaks, what it says and what it calls."""
    yield turn.role
    if reasoning:
        yield reasoning_of(turn) or ""
    yield turn.content
    yield _json(turn.more.get("tool_calls"))


def tool_texts(row: Conversation | Pair) -> Iterator[str]:
    """The tools on offer."""
    yield _json((row if isinstance(row, Conversation) else row.chosen).tools)


def _said(row: Row) -> Iterator[str]:
    if isinstance(row, Passage):
        yield row.text
        return
    yield from tool_texts(row)
    for turn in turns_of(row):
        yield from turn_texts(turn, reasoning=True)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str) if value else ""


def sketch(row: Row) -> bytes:
    """MinHash of the runs of words: of each of its numbers the lowest 8 bits, which are as often the same by chance."""
    from rensa import RMinHash

    if isinstance(row, Passage):
        text = row.text
    else:
        turns = (turn for turn in turns_of(row) if turn.role != "system")
        text = "\n".join(said for turn in turns for said in turn_texts(turn, reasoning=True))
    minhash, has_runs = RMinHash(num_perm=SLOTS, seed=_SEED), False
    for block in blocks(text):
        words = words_of(block)
        if runs := [" ".join(run) for run in zip(*(words[begin:] for begin in range(_RUN)), strict=False)]:
            minhash.update(runs)
            has_runs = True
    return np.array(minhash.digest(), np.uint32).astype(np.uint8).tobytes() if has_runs else b""
