"""Preparing ten million rows: the memory of Prepare, for JSONL, CSV and Parquet.

The rows are a prompt and a completion of a few words each, with a loss on the completion, rendered with
SmolLM2-135M-Instruct's chat template. Nothing is switched off: every check, the split of a validation set, duplicates
and conflicting answers, the report. Memory is the largest sum of the anonymous memory (/proc/<pid>/smaps_rollup) of
all processes of the stage; pages that a process shares with its parent count for both. The goal is 1,024 MiB. Each
kind is prepared with a hundredth of the rows too: what lies between the two grows with rows.

    SLUICE_BENCH_MANY=10000000 python -m tests.bench prepare-many
"""

import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dev import models
from tests.bench.bench_prepare import MODEL, ours

MANY = int(os.environ.get("SLUICE_BENCH_MANY", "10000000"))
KINDS = os.environ.get("SLUICE_BENCH_KINDS", "jsonl csv parquet").split()
_WORDS = "job gpu engine loan adapter floor policy slot token loss step epoch model row pool claim".split()  # noqa: SIM905


def main() -> None:
    """Print a line for each file."""
    models.models()
    sys.stdout.write(
        f"{'file':<10}{'rows':>12}{'MB':>8}{'seconds':>10}{'rows/s':>10}{'peak MiB':>10}{'bytes/row':>11}\n"
    )
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        volumes = Path(name)
        for claim in ("models", "adapters", "datasets"):
            (volumes / claim).mkdir()
        models.place(MODEL, volumes / "models")
        for kind in KINDS:
            below = 0.0
            for count in (MANY // 100, MANY):
                file = volumes / "datasets" / f"{count}.{kind}"
                write(file, count)
                cost = ours(volumes, file.name, "many")
                grown = f"{(cost.mib - below) * 2**20 / (count * 0.99):.1f}" if below else ""
                sys.stdout.write(
                    f"{kind:<10}{count:>12,}{file.stat().st_size / 1e6:>8,.0f}{cost.seconds:>10,.0f}"
                    f"{count / cost.seconds:>10,.0f}{cost.mib:>10,.0f}{grown:>11}\n"
                )
                sys.stdout.flush()
                below = cost.mib
                file.unlink()


def write(file: Path, count: int) -> None:
    """As many rows in a file of the kind that its name ends with."""
    if file.suffix == ".parquet":
        schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
        with pq.ParquetWriter(file, schema) as table:
            ready = rows(count)
            while some := list(islice(ready, 100_000)):
                columns = [pa.array(column) for column in zip(*some, strict=True)]
                table.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        return
    with file.open("w") as lines:
        if file.suffix == ".csv":
            lines.write("prompt,completion\n")
            lines.writelines(f"{prompt},{completion}\n" for prompt, completion in rows(count))
        else:
            lines.writelines(
                json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in rows(count)
            )


def rows(count: int) -> Iterator[tuple[str, str]]:
    """Prompts that all differ, and completions."""
    dice = random.Random(3)
    for index in range(count):
        prompt, completion = (" ".join(dice.choices(_WORDS, k=dice.randint(2, 8))) for _ in range(2))
        yield f"{index} {prompt}?", f"{completion}."


if __name__ == "__main__":
    main()
