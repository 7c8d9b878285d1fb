"""The loss from hidden states to their gradient: ours, a tile at a time, against all logits at once.

4,096 positions that all predict something, float32, two threads. Each measurement has a fresh process, and the two
methods take turns in ABBA order. `extra MB` is how far the process's memory rises above weights and hidden states;
with a trained head its gradient is included. CPU seconds are those of both threads together, because others use the
machine too and change the wall clock. The first figure of each is the median. Goals: 250 MB with a frozen head, and
1.1 times the time. TRL's own chunked loss is part of what train.md measures.

The second table shows only the two products of the largest row, in tiles of one size and several shapes. They take
nearly all of its time, so the shape of a tile decides. With few positions, reading and packing the head costs more
than the memory that it saves.

    python -m tests.bench.bench_loss
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sluice_trainer.train.fused_cross_entropy import TILE_BYTES, fused_cross_entropy

THREADS = 2
ABBA = ("fused", "full", "full", "fused")
REPEATS = 3


@dataclass(frozen=True)
class Setting:
    """The head, and how often the four measurements are made."""

    vocabulary: int
    hidden: int
    trained: bool
    rounds: int
    positions: int = 4_096

    def __str__(self) -> str:
        return f"{self.vocabulary:>10,}{self.hidden:>8,}{'trained' if self.trained else 'frozen':>9}"


SETTINGS = (
    Setting(49_152, 576, trained=False, rounds=2),
    Setting(49_152, 576, trained=True, rounds=1),
    Setting(151_936, 576, trained=False, rounds=1),
    Setting(49_152, 2_048, trained=False, rounds=1),
    Setting(151_936, 2_048, trained=False, rounds=1),
)


@dataclass(frozen=True)
class Cost:
    """Of one loss and its gradients."""

    extra_mb: float
    cpu_seconds: float
    wall_seconds: float


def measure(arm: str, setting: Setting) -> Cost:
    """In a process that has done nothing else yet."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    head = nn.Linear(setting.hidden, setting.vocabulary, bias=False).requires_grad_(setting.trained)
    hidden = torch.randn(setting.positions, setting.hidden).requires_grad_()
    targets = torch.randint(0, setting.vocabulary, (setting.positions,))
    memory, cpu, wall = peak_mb(), time.process_time(), time.perf_counter()
    if arm == "fused":
        fused_cross_entropy(hidden, head, targets).sum().backward()
    else:
        cross_entropy(head(hidden).float(), targets, reduction="sum").backward()
    return Cost(peak_mb() - memory, time.process_time() - cpu, time.perf_counter() - wall)


def peak_mb() -> float:
    """The most memory that this process has had; getrusage would count what its parent had when it started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def in_process(arm: str, setting: Setting) -> Cost:
    """Measure in a process of its own."""
    arguments = map(str, (arm, setting.vocabulary, setting.hidden, int(setting.trained), setting.positions))
    found = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_loss", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return Cost(**json.loads(found.stdout))


def line(setting: Setting) -> str:
    """One line of the table."""
    costs: dict[str, list[Cost]] = {"full": [], "fused": []}
    for arm in ABBA * setting.rounds:
        costs[arm].append(in_process(arm, setting))
    cells = [str(setting)]
    for found in costs.values():
        cpu = [cost.cpu_seconds for cost in found]
        cells += [
            f"{max(cost.extra_mb for cost in found):>10,.0f}",
            f"{median(cpu):>8.2f} ({min(cpu):.2f} to {max(cpu):.2f})".ljust(28),
            f"{median(cost.wall_seconds for cost in found):>7.1f}",
        ]
    full, fused = (median(cost.cpu_seconds for cost in costs[arm]) for arm in ("full", "fused"))
    return "".join([*cells, f"{fused / full:>8.2f}"])


def product_speeds(positions: int, tokens: int, hidden: int) -> tuple[float, float]:
    """Of the logits of a tile and of the gradient of its hidden states, in 1e9 operations a second."""
    inputs, head = torch.randn(positions, hidden), torch.randn(tokens, hidden)
    logits, gradient = torch.empty(positions, tokens), torch.zeros(positions, hidden)

    def speed(product: Callable[[], object]) -> float:
        product()  # the first one touches fresh memory
        seconds = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            product()
            seconds.append(time.perf_counter() - started)
        return 2 * positions * tokens * hidden / median(seconds) / 1e9

    return speed(lambda: torch.mm(inputs, head.t(), out=logits)), speed(lambda: gradient.addmm_(logits, head))


def print_products(largest: Setting) -> None:
    """The second table."""
    torch.set_num_threads(THREADS)
    sys.stdout.write(f"\n{'positions':>9} x {'tokens':<8}{'logits GF/s':>12}{'gradient GF/s':>15}\n")
    tiles = [(positions, min(largest.vocabulary, TILE_BYTES // 4 // positions)) for positions in (276, 1_024, 4_096)]
    for positions, tokens in (*tiles, (largest.positions, largest.vocabulary)):
        logits, gradient = product_speeds(positions, tokens, largest.hidden)
        sys.stdout.write(f"{positions:>9,} x {tokens:<8,}{logits:>12.0f}{gradient:>15.0f}\n")


def main() -> None:
    """Print the tables, or with arguments one measurement."""
    if arguments := sys.argv[1:]:
        vocabulary, hidden, trained, positions = map(int, arguments[1:])
        cost = measure(arguments[0], Setting(vocabulary, hidden, bool(trained), 1, positions))
        sys.stdout.write(json.dumps(asdict(cost)))
        return
    arms = "".join(f"{f'{arm} MB':>10}{'  CPU s (least to most)':<28}{'wall s':>7}" for arm in ("full", "fused"))
    head = f"{'vocabulary':>10}{'hidden':>8}{'head':>9}{arms}{'times':>8}"
    sys.stdout.write(f"{head}\n")
    for setting in SETTINGS:
        sys.stdout.write(f"{line(setting)}\n")
        sys.stdout.flush()
    print_products(SETTINGS[-1])


if __name__ == "__main__":
    main()
