"""A training by Sluice and by TRL: speed, seconds until the first step, memory, and what saving costs.

The model is SmolLM2-135M-Instruct with LoRA of rank 16 on all linear layers, in float32 on two threads. It trains for
one epoch of 64 conversations of log-normal length; the six longest have more than a third of all tokens. The loss
counts the answer, nearly half of each row. Each training is a fresh process. Sluice and TRL tuned take turns in ABBA
order, after one step of each that warms the disk's cache. Tokens a second are real ones, in the loss or not, never
padding, from the begin of the first step to the end of the last. Goal: 1.25 times TRL tuned. The trainers count these
tokens themselves, and the benchmark ends if one has left any out.

**Sluice** is the Train stage as in a pod, on rows that Prepare has left: eight rows a step, packed. It also makes a
checkpoint every third step, which TRL is spared.

**TRL tuned** is SFTTrainer with packing (`bfd`) and without gradient checkpointing. It packs the whole dataset before
it makes batches, so a step cannot have exactly our eight rows. It has two packs of at most 1,024 tokens, which are
about as many tokens. They are two accumulated batches of one pack, because TRL makes one sequence of a batch of two,
and the work of attention grows with the square of its length. When this was written, a whole run with 16 rows, once
each, took 56 CPU seconds; 67 with one batch of two packs; 58 with `padding_free`, four rows a batch and no packing;
71 with eight; 61 with a worker for the data; 66 with eager attention.

**TRL's defaults** is SFTTrainer as it comes: eight rows a batch, padded, with gradient checkpointing. One default is
not taken, bf16, because everything here is float32. It runs once, for information, and says nothing about bf16. With
avx512_bf16 a step of TRL took two thirds of the CPU seconds in bf16, and a little more when tuned (once each, when
this was written). A CPU without such instructions is slower in bf16.

All get the same tokens with the same loss mask. TRL reads our Prepare's rows, so tokenising counts for neither. Rank,
alpha, learning rate (2e-4, constant), AdamW and clipping are the same too. `loss` is the mean over the loss tokens of
the last epoch, each as it was at its step. It shows whether all learn the same. Small differences come from the order
of the rows and, for TRL tuned, from which rows share a step.

`by CPU` is the same ratio by the processor time of the same steps. Other work on the machine changes it less, and it
leaves out where a core waits. Seconds count from the start of the process; memory is the kernel's ru_maxrss. The goal
for the first report is 300 ms. While a checkpoint's state is copied, training stands still (goal: 20 ms); the writing
happens beside the training. The cost at one save a minute is the copy's share of a minute. It is at most the share of
copy and writing together, as if training stood still for both (goal: 1 %).

    SLUICE_BENCH_PAIRS=1 SLUICE_BENCH_ROWS=8 python -m tests.bench.bench_train
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from tests.bench import train_task
from tests.bench.train_arms import Run, Task, by_ours, by_trl, new_volumes, prepare

PAIRS = int(os.environ.get("SLUICE_BENCH_PAIRS", "5"))
ROWS = int(os.environ.get("SLUICE_BENCH_ROWS", "64"))


def main() -> None:
    """Print each pair as it ends, then what all of them come to."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
        volumes = new_volumes(Path(folder), ROWS)
        warm = prepare(volumes, "warm", maxSteps=1)
        by_ours(warm)
        by_trl(warm, "tuned", steps=1)
        task = prepare(volumes, "train")
        say(task_line(task))
        say()
        arms = {"Sluice": lambda: whole(task, by_ours(task)), "TRL tuned": lambda: whole(task, by_trl(task, "tuned"))}
        runs = in_pairs(arms)
        runs["TRL's defaults"] = [whole(task, by_trl(task, "defaults"))]
    say()
    for line in (*table(runs), "", *savings(runs["Sluice"])):
        say(line)


def in_pairs(arms: dict[str, Callable[[], Run]]) -> dict[str, list[Run]]:
    """Each of two arms in each pair, who was last being first in the next."""
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    order = list(arms)
    ratios: list[float] = []
    cpu_ratios: list[float] = []
    say(f"{'pair':<6}{'first':<12}{'Sluice, tokens/s':>18}{'TRL tuned':>12}{'times':>10}{'by CPU':>10}")
    for pair in range(PAIRS):
        for name in order:
            runs[name].append(arms[name]())
        ours, theirs = (of[-1] for of in runs.values())
        ratios.append(ours.tokens_per_second / theirs.tokens_per_second)
        cpu_ratios.append(ours.tokens_per_cpu_second / theirs.tokens_per_cpu_second)
        speeds = f"{ours.tokens_per_second:>18.1f}{theirs.tokens_per_second:>12.1f}"
        say(f"{pair + 1:<6}{order[0]:<12}{speeds}{ratios[-1]:>10.2f}{cpu_ratios[-1]:>10.2f}")
        order.reverse()
    say(f"times, median (least to most): {spread(ratios, '.2f')}; by CPU seconds: {spread(cpu_ratios, '.2f')}")
    return runs


def whole(task: Task, run: Run) -> Run:
    """A training that has left nothing out, or the end."""
    expected = (task.result.tokens * train_task.EPOCHS, task.result.loss_tokens * train_task.EPOCHS)
    if (run.tokens, run.loss_tokens) != expected:
        raise SystemExit(f"trained on {run.tokens} tokens, {run.loss_tokens} of them in the loss, not {expected}")
    return run


def task_line(task: Task) -> str:
    """What there is to learn, and how it becomes steps."""
    found, lengths = task.result, task.prepared.training.lengths
    return (
        f"{found.rows} rows of {min(lengths)} to {max(lengths):,} tokens, median {median(lengths):.0f}; together "
        f"{found.tokens:,}, {found.loss_tokens / found.tokens:.0%} in the loss; {found.steps} steps of "
        f"{train_task.BATCH_ROWS} rows; packs in a step of TRL tuned: {task.packs_per_step}"
    )


def table(runs: dict[str, list[Run]]) -> list[str]:
    """One line for each thing that was measured: median, least and most of each arm."""
    rows: tuple[tuple[str, Callable[[Run], float | None], str], ...] = (
        ("real tokens a second", lambda run: run.tokens_per_second, ".1f"),
        ("the same a CPU second", lambda run: run.tokens_per_cpu_second, ".1f"),
        ("ms to the first report", lambda run: run.first_report and run.first_report * 1000, ".0f"),
        ("s to the first step's begin", lambda run: run.first_step_begins, ".1f"),
        ("s to the first step's end", lambda run: run.first_step_ends, ".1f"),
        ("CPU seconds in all", lambda run: run.cpu_seconds, ".0f"),
        ("peak memory, MB", lambda run: run.peak_mb, ",.0f"),
        ("optimizer steps", lambda run: run.steps, "d"),
        ("loss, nats", lambda run: run.loss, ".3f"),
    )
    lines = ["".join([f"{'median (least to most)':<30}", *(f"{name:<28}" for name in runs)]).rstrip()]
    for name, value, form in rows:
        cells = ([found for run in of if (found := value(run)) is not None] for of in runs.values())
        lines.append("".join([f"{name:<30}", *(f"{spread(cell, form):<28}" for cell in cells)]).rstrip())
    return lines


def savings(runs: Sequence[Run]) -> list[str]:
    """What the saves behind the training cost; no line when it was too short for one."""
    copies = [seconds for run in runs for seconds in run.copies]
    writes = [seconds for run in runs for seconds in run.writes]
    if not copies:
        return ["Too few steps for a save behind the training."]
    copy, write = median(copies), median(writes)
    return [
        f"{len(copies)} saves: copied in {spread([1000 * seconds for seconds in copies], '.1f')} ms, durable after "
        f"{spread(writes, '.2f')} s more",
        f"at one save a minute: {copy / 60:.3%} of the run for the copy, at most {(copy + write) / 60:.2%} with the "
        "writing",
    ]


def spread(values: Sequence[float], form: str) -> str:
    """Median, least and most; of one value just this."""
    if len(values) < 2:
        return "".join(f"{value:{form}}" for value in values) or "-"
    middle = median(values)
    middle = round(middle) if form == "d" else middle
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}})"


def say(line: str = "") -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
