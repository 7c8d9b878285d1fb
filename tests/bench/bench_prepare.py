"""Preparing rows by Sluice and by TRL: rows a second and memory, for one and for several kinds of files.

The rows are conversations of one question and one answer of log-normal length, rendered with SmolLM2-135M-Instruct's
chat template, cut at 512 tokens, with a loss on the answer alone. **Sluice** is the Prepare stage as in a pod: reading,
every check, rendering, tokenising, masking, the split, writing, digests. **TRL** is what SFTTrainer does to a dataset
before its first step (datasets.load_dataset of the same file, then _prepare_dataset with completion_only_loss), with
one process and with as many as there are cores.

Seconds count from the first row to the last: imports, and what is done once for a model, are measured by a run of 32
rows and taken off. Memory is the largest sum of the anonymous memory (/proc/<pid>/smaps_rollup) of all processes.

    SLUICE_BENCH_ROWS=100000 SLUICE_BENCH_ROUNDS=3 python -m tests.bench prepare
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq

from dev import models
from tests.unit.trainer.jobs import REPOSITORY, Job

MODEL = "smollm2-135m-instruct"
ROWS = int(os.environ.get("SLUICE_BENCH_ROWS", "100000"))
ROUNDS = int(os.environ.get("SLUICE_BENCH_ROUNDS", "3"))
FEW = 32
_WORDS = "the model of a job that has its rows in one file and learns what each answer says about them again".split()  # noqa: SIM905


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    seconds: float
    mib: float


def main() -> None:
    """Print a line for each arm: the median of its rounds, and how far they lie apart."""
    models.models()
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        volumes = Path(name)
        for claim in ("models", "adapters", "datasets"):
            (volumes / claim).mkdir()
        models.place(MODEL, volumes / "models")
        for rows in (FEW, ROWS):
            write_files(volumes / "datasets", rows)
        cores = len(os.sched_getaffinity(0))
        arms = {
            "Sluice, JSONL": lambda rows, run: ours(volumes, f"{rows}.jsonl", run),
            "Sluice, Parquet": lambda rows, run: ours(volumes, f"{rows}.parquet", run),
            "Sluice, CSV": lambda rows, run: ours(volumes, f"{rows}.csv", run),
            "TRL, 1 process": lambda rows, run: trl(volumes, f"{rows}.jsonl", 1),
            f"TRL, {cores} processes": lambda rows, run: trl(volumes, f"{rows}.jsonl", cores),
        }
        found: dict[str, list[Cost]] = {arm: [] for arm in arms}
        for round_ in range(ROUNDS):
            for arm, of in arms.items():
                few, all_of_them = of(FEW, f"few-{round_}"), of(ROWS, f"all-{round_}")
                cost = Cost(all_of_them.seconds - few.seconds, all_of_them.mib)
                found[arm].append(cost)
    tell(f"{ROWS:,} rows, {ROUNDS} rounds{'rows/s':>15}{'least':>9}{'most':>9}{'MiB':>8}")
    for arm, costs in found.items():
        speeds = [ROWS / cost.seconds for cost in costs]
        memory = max(cost.mib for cost in costs)
        tell(f"{arm:<24}{median(speeds):>15,.0f}{min(speeds):>9,.0f}{max(speeds):>9,.0f}{memory:>8,.0f}")


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def write_files(folder: Path, count: int) -> None:
    """The same rows as JSONL, Parquet and CSV."""
    with (folder / f"{count}.jsonl").open("w") as lines, (folder / f"{count}.csv").open("w") as cells:
        cells.write("prompt,completion\n")
        schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
        with pq.ParquetWriter(folder / f"{count}.parquet", schema) as table:
            batch = []
            for prompt, completion in rows(count):
                row = {"prompt": prompt, "completion": completion}
                turns = {"prompt": [{"role": "user", "content": prompt}]}
                lines.write(json.dumps(turns | {"completion": [{"role": "assistant", "content": completion}]}) + "\n")
                cells.write(f'"{prompt}","{completion}"\n')
                batch.append(row)
                if len(batch) == 10_000:
                    table.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                    batch = []
            if batch:
                table.write_batch(pa.RecordBatch.from_pylist(batch, schema))


def rows(count: int) -> Iterator[tuple[str, str]]:
    """Questions and answers, 20 and 60 words in the median."""
    dice = random.Random(7)
    for index in range(count):
        asked, answered = (max(3, min(600, int(dice.lognormvariate(mean, 0.6)))) for mean in (3.0, 4.1))
        question, answer = (" ".join(dice.choices(_WORDS, k=length)) for length in (asked, answered))
        yield f"{index}: {question}?", f"{answer}."


def ours(volumes: Path, file: str, run: str) -> Cost:
    """The Prepare stage."""
    job = Job(
        volumes,
        name=f"{run}-{file.replace('.', '-')}",
        spec=(("model", {"uri": f"pvc://models/{MODEL}"}), ("dataset", {"uri": f"pvc://datasets/{file}"})),
    )
    return measured(job.start("Prepare"))


def trl(volumes: Path, file: str, processes: int) -> Cost:
    """TRL's preparation, with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        return measured(
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _TRL,
                    *map(str, (volumes / "models" / MODEL, volumes / "datasets" / file, cache)),
                    str(processes),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=REPOSITORY,
                text=True,
            )
        )


_TRL = """
import sys
from datasets import load_dataset
from transformers import AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
model, file, cache, processes = sys.argv[1:]
rows = load_dataset("json", data_files=file, split="train", cache_dir=cache)
settings = SFTConfig(output_dir=cache, max_length=512, completion_only_loss=True, report_to=[],
    dataset_num_proc=None if processes == "1" else int(processes), use_cpu=True, bf16=False)
trainer = SFTTrainer(model=model, args=settings, train_dataset=rows,
    processing_class=AutoTokenizer.from_pretrained(model))
print(len(trainer.train_dataset))
"""


def measured(process: "subprocess.Popen[str]") -> Cost:
    """Wait for a process, and look at its memory meanwhile.

    Raises:
        RuntimeError: it has failed.
    """
    begun = time.monotonic()
    largest = 0.0
    ended = threading.Event()

    def look() -> None:
        nonlocal largest
        while not ended.wait(0.1):
            largest = max(largest, sum(anonymous_mib(pid) for pid in tree(process.pid)))

    watcher = threading.Thread(target=look)
    watcher.start()
    process.communicate()
    ended.set()
    watcher.join()
    if process.returncode != 0:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
    return Cost(time.monotonic() - begun, largest)


def tree(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for each in found:
        try:
            children = Path(f"/proc/{each}/task/{each}/children").read_text().split()
        except OSError:
            continue
        found += map(int, children)
    return found


def anonymous_mib(pid: int) -> float:
    """What the kernel could not take back from a process."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(("Anonymous:", "Swap:"))) / 1024


if __name__ == "__main__":
    main()
