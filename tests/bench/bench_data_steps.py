"""What each step costs, and how well near duplicates are found.

Rows are conversations of a question and an answer, of 200 words in all, from a vocabulary whose words are as frequent
as in a language (Zipf). One process, one thread. `clean` removes markup too, and `chunk` cuts texts of 2,000 words
with a tokenizer of GPT-2's kind. `toxicity`, `languages`, `repetition` and `words` are what `filter` can do.

Near duplicates: 20,000 texts of 40 to 200 words. A third are copies of others with up to a fifth of their words
changed; a third are of 20 templates and share a third of their words. F1 is of dropped rows: right is what the same
decisions drop in the same order with exact Jaccard, over all pairs that share a run, in the place of sketches.

MB is of the tables after as many rows, and peak MB how far the process's memory rose while they grew.

    python -m tests.bench.bench_data_steps
"""

import random
import sys
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from sluice_api.data_steps import Deduplicate, Step
from sluice_trainer.data.row import Conversation, Passage, Row, Turn
from sluice_trainer.data.steps.deduplicate import DropDuplicates
from sluice_trainer.data.steps.languages import row_language
from sluice_trainer.data.steps.make import row_steps
from sluice_trainer.data.steps.seen import Hashes, Seen
from sluice_trainer.data.steps.signature import SLOTS, Signature
from sluice_trainer.data.steps.step import Dropped, RowStep
from sluice_trainer.data.steps.words import words_of

ROWS = 2_000
REPEATS = 3


def vocabulary(chosen: random.Random) -> list[str]:
    """Words, the most frequent first."""
    return ["".join(chosen.choices("etaoinshrdlu", k=chosen.randint(2, 9))) for _ in range(20_000)]


class Writer:
    """Writes texts that look like a language's."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._words = vocabulary(self.random)
        self._weights = array("d", (1 / (rank + 3) for rank in range(len(self._words))))
        for rank in range(1, len(self._weights)):
            self._weights[rank] += self._weights[rank - 1]

    def words(self, count: int) -> list[str]:
        """Some words."""
        return self.random.choices(self._words, cum_weights=self._weights, k=count)

    def text(self, count: int) -> str:
        """Sentences of twelve words."""
        words = self.words(count)
        return " ".join(" ".join(words[at : at + 12]).capitalize() + "." for at in range(0, count, 12))

    def row(self) -> Row:
        """A question and an answer."""
        return Conversation((Turn("user", self.text(50)), Turn("assistant", self.text(150))))


def main() -> None:
    """Print the tables; memory first, while the process has had little."""
    memory()
    sys.stdout.write(f"\n{'step':<34}{'rows/s':>10}{'least':>10}{'most':>10}{'MB/s':>8}\n")
    writer = Writer(1)
    rows = [writer.row() for _ in range(ROWS)]
    texts: list[Row] = [Passage(writer.text(2_000)) for _ in range(ROWS // 20)]
    for name, fields in (
        ("clean", {"clean": {"markup": "Remove"}}),
        ("filter: length, refusals", {"filter": {"minCharacters": 1, "refusals": "Drop", "emptyAnswers": "Drop"}}),
        ("filter: words (5,000)", {"filter": {"words": ["foobar"], "wordsFrom": "pvc://lists/words.txt"}}),
        ("filter: repetition", {"filter": {"maxRepetition": "0.9"}}),
        ("filter: languages", {"filter": {"languages": ["en"]}}),
        ("filter: toxicity", {"filter": {"maxToxicity": "1.0"}}),
        ("redact", {"redact": {}}),
    ):
        step = made(fields)
        assert not isinstance(step, DropDuplicates)
        report(name, rows, lambda row, step=step: applied(step, row))  # type: ignore[misc]
    chunk = made({"chunk": {"tokens": 256, "overlap": 32}})
    assert not isinstance(chunk, DropDuplicates)
    report("chunk (2,000 words)", texts, lambda row: applied(chunk, row))
    for near in (None, "0.8"):
        step = DropDuplicates(Deduplicate(near=near))
        report(f"deduplicate: signature{', near' if near else ''}", rows, step.signature)
    report("language for the report", rows, row_language)
    near_duplicates()


def made(fields: dict[str, Any]) -> RowStep | DropDuplicates:
    """A step of a spec."""
    words = {"pvc://lists/words.txt": [f"nosuchword{index}" for index in range(5_000)]}
    return row_steps([Step.model_validate(fields)], offsets(), words)[0]


def offsets() -> Callable[[str], list[tuple[int, int]]]:
    """A byte-level tokenizer that has learnt the texts here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    writer = Writer(1)
    trainer = trainers.BpeTrainer(vocab_size=4_000, show_progress=False)
    tokenizer.train_from_iterator([writer.text(2_000) for _ in range(50)], trainer)
    return lambda text: tokenizer.encode(text).offsets


def applied(step: RowStep, row: Row) -> None:
    """Apply a step; a row may be dropped."""
    try:
        step.apply(row)
    except Dropped:
        return


def report(name: str, rows: list[Row], what: Callable[[Row], object]) -> None:
    """Measure one thing that is done to each row."""
    size = sum(len(str(row)) for row in rows) / 1e6
    what(rows[0])  # loads its model
    seconds = sorted(timed(lambda: [what(row) for row in rows]) for _ in range(REPEATS))
    rates = [len(rows) / each for each in reversed(seconds)]
    sys.stdout.write(
        f"{name:<34}{rates[REPEATS // 2]:>10,.0f}{rates[0]:>10,.0f}{rates[-1]:>10,.0f}"
        f"{size / seconds[REPEATS // 2]:>8.1f}\n"
    )
    sys.stdout.flush()


def timed(what: Callable[[], object]) -> float:
    """Seconds on the wall clock."""
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def planted(count: int) -> list[str]:
    """New texts, changed copies and texts of templates, in a random order."""
    writer = Writer(2)
    templates = [writer.words(30) for _ in range(20)]
    texts = [writer.words(writer.random.randint(40, 200)) for _ in range(count // 3)]
    texts += [[*writer.random.choice(templates), *writer.words(60)] for _ in range(count // 3)]
    for _ in range(count - len(texts)):
        copy = list(writer.random.choice(texts[: count // 3]))
        for place in writer.random.sample(range(len(copy)), writer.random.randint(0, len(copy) // 5)):
            copy[place] = writer.words(1)[0]
        texts.append(copy)
    writer.random.shuffle(texts)
    return [" ".join(text) for text in texts]


def near_duplicates() -> None:
    """Precision, recall and F1 against exact Jaccard, and rows a second."""
    sys.stdout.write(f"\n{'near':<8}{'exact':>8}{'found':>8}{'precision':>11}{'recall':>8}{'F1':>8}{'rows/s':>9}\n")
    texts = planted(20_000)
    for near in ("0.5", "0.7", "0.8", "0.9"):
        step = DropDuplicates(Deduplicate(near=near))
        signatures = [step.signature(Passage(text)) for text in texts]
        seen = step.seen()
        found: set[int] = set()
        seconds = timed(lambda: found.update(i for i, s in enumerate(signatures) if not seen.is_new(s)))  # noqa: B023
        exact = exactly_dropped(texts, float(near))
        right = len(found & exact)
        precision, recall = right / max(1, len(found)), right / max(1, len(exact))
        sys.stdout.write(
            f"{near:<8}{len(exact):>8,}{len(found):>8,}{precision:>11.3f}{recall:>8.3f}"
            f"{2 * precision * recall / (precision + recall):>8.3f}{len(texts) / seconds:>9,.0f}\n"
        )
        sys.stdout.flush()


def exactly_dropped(texts: Iterable[str], near: float) -> set[int]:
    """Which rows the same decisions drop with exact Jaccard."""
    dropped: set[int] = set()
    kept: dict[int, set[str]] = {}
    by_run: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        words = words_of(text)
        runs = {" ".join(words[at : at + 5]) for at in range(len(words) - 4)}
        common: dict[int, int] = defaultdict(int)
        for run in runs:
            for other in by_run[run]:
                common[other] += 1
        if any(shared / (len(runs) + len(kept[other]) - shared) >= near for other, shared in common.items()):
            dropped.add(index)
            continue
        kept[index] = runs
        for run in runs:
            by_run[run].append(index)
    return dropped


def memory() -> None:
    """Bytes a row of what is remembered, and how long it takes to remember."""
    sys.stdout.write(f"{'remembered':<24}{'rows':>12}{'MB':>8}{'bytes/row':>11}{'rows/s':>12}{'peak MB':>9}\n")
    values = random.Random(3)
    hashes, before = Hashes(), peak_mb()
    seconds = timed(lambda: fill(hashes, 10_000_000))
    line("exact", 10_000_000, hashes.nbytes / 1e6, seconds, peak_mb() - before)
    seen, before = Seen(0.8), peak_mb()
    seconds = timed(lambda: [seen.is_new(Signature(row, values.randbytes(SLOTS))) for row in range(300_000)] and None)
    line("near", 300_000, seen.nbytes / 1e6, seconds, peak_mb() - before)


def fill(hashes: Hashes, count: int) -> None:
    """Put different hashes into a set."""
    for row in range(count):
        hashes.add((row * 0xD1342543DE82EF95 + 1) % 2**64)


def line(name: str, rows: int, size: float, seconds: float, peak: float) -> None:
    """One of the table."""
    sys.stdout.write(
        f"{name:<24}{rows:>12,}{size:>8.0f}{size * 1e6 / rows:>11.0f}{rows / seconds:>12,.0f}{peak:>9.0f}\n"
    )
    sys.stdout.flush()


def peak_mb() -> float:
    """The most memory that this process has had."""
    from pathlib import Path

    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    main()
