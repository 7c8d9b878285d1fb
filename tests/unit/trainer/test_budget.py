"""How large a micro-batch may be: measured small and extrapolated on a CPU, tried out on a GPU."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sluice_api.training import Training
from sluice_trainer.ranks import Rank
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.group import Group
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.trials import budget
from sluice_trainer.train.trials.budget import batching_for, largest_fitting, measured_peak
from sluice_trainer.train.trials.memory import HEAP_HOLES_BYTES, Cost, fit_cost, free_bytes, upper_bound
from tests.unit.trainer.jobs import REPOSITORY
from tests.unit.trainer.test_packing import SHAPES, adapted, random_rows

ALONE = Group(Rank(), torch.device("cpu"))
ROWS = random_rows(40, 8, 24)
MIB = 1 << 20


@pytest.mark.parametrize(
    ("room", "longest", "most", "expected"),
    [
        (5000, 40, 1024, 1024),
        (1023, 40, 1024, 512),
        (100, 40, 1024, 64),
        (50, 40, 1024, 40),
        (40, 40, 1024, 40),
        (39, 40, 1024, None),
        (5000, 2000, 1024, 2000),
        (5000, 40, 256, 256),
    ],
)
def test_token_budget_is_halved_until_it_fits_and_holds_the_longest_row(
    room: int, longest: int, most: int, expected: int | None
) -> None:
    assert largest_fitting(lambda tokens: tokens <= room, longest, most) == expected


@pytest.mark.parametrize(
    ("cost", "tokens"), [(Cost(0, 100, 0), 10), (Cost(5000, 100, 3), 1000), (Cost(7, 0.5, 0.25), 4096)]
)
def test_memory_cost_is_fitted_through_three_peaks(cost: Cost, tokens: int) -> None:
    peaks = {n: cost.fixed + cost.token * n + cost.pair * n * n for n in (16, 32, 64)}
    assert fit_cost(peaks).of(tokens) == pytest.approx(cost.of(tokens))  # type: ignore[arg-type]


MAXIMUM, CURRENT, CACHE, MAPPED, AVAILABLE = "memory.max", "memory.current", "inactive_file", "file_mapped", "meminfo"


@pytest.mark.parametrize(
    ("rule", "facts", "processes", "expected"),
    [
        ("the limit less what is used", {MAXIMUM: 1000, CURRENT: 300}, 1, 700),
        ("page cache can be taken back", {MAXIMUM: 1000, CURRENT: 300, CACHE: 200}, 1, 900),
        ("but not what is mapped", {MAXIMUM: 1000, CURRENT: 300, CACHE: 200, MAPPED: 150}, 1, 750),
        ("no limit", {MAXIMUM: "max", CURRENT: 300, AVAILABLE: 5000}, 1, 5000),
        ("a limit above what the machine has", {MAXIMUM: 9000, CURRENT: 300, AVAILABLE: 5000}, 1, 5000),
        ("no cgroup", {AVAILABLE: 5000}, 1, 5000),
        ("two processes share it", {MAXIMUM: 1000, CURRENT: 300}, 2, 350),
    ],
)
def test_free_bytes(rule: str, facts: dict[str, int | str], processes: int, expected: int, tmp_path: Path) -> None:
    def in_bytes(fact: str, default: int | str = 0) -> str:
        value = facts.get(fact, default)
        return value if isinstance(value, str) else str(value * MIB)

    if MAXIMUM in facts:
        (tmp_path / MAXIMUM).write_text(in_bytes(MAXIMUM))
        (tmp_path / CURRENT).write_text(in_bytes(CURRENT))
        stat = {"anon": "0", "active_file": "0", CACHE: in_bytes(CACHE), MAPPED: in_bytes(MAPPED)}
        (tmp_path / "memory.stat").write_text("".join(f"{key} {value}\n" for key, value in stat.items()))
    available = facts.get(AVAILABLE, 100_000)
    (tmp_path / AVAILABLE).write_text(f"MemTotal: 1 kB\nMemAvailable:   {int(available) * 1024} kB\n")
    model = torch.nn.Linear(100, 100)
    state = 12 * 10_100
    assert free_bytes(model, processes, tmp_path, tmp_path / AVAILABLE) == expected * MIB - state, rule


def limited(room: int, tries: list[int]) -> Callable[[TokenLoss, MicroBatch], Tensor]:
    """A loss for which a GPU's memory has room for so many tokens; for twice as many with gradient checkpointing."""
    summed = TokenLoss.summed

    def summed_in_room(loss: TokenLoss, batch: MicroBatch) -> Tensor:
        tries.append(batch.input_ids.numel())
        if batch.input_ids.numel() > room * (2 if loss.model.is_gradient_checkpointing else 1):
            summed(loss, MicroBatch.of([ROWS[1]], ALONE.device)).backward()  # it got so far
            raise torch.OutOfMemoryError("no room")
        return summed(loss, batch)

    return summed_in_room


@pytest.mark.parametrize(
    ("rule", "room", "recorded", "tokens", "tries", "checkpointing"),
    [
        ("the longest row first, then as much as there may be", 256, None, 256, [40, 256], False),
        ("halved until it fits", 100, None, 64, [40, 256, 128, 64], False),
        ("never less than the longest row", 50, None, 40, [40, 256, 128, 64], False),
        ("what the training began with is kept", 256, 128, 128, [40, 128], False),
        ("unless it does not fit any more", 100, 128, 64, [40, 128, 64], False),
        ("checkpointing when the longest row does not fit", 39, None, 64, [40, 40, 256, 128, 64], True),
    ],
)
def test_token_budget_is_tried_out_on_a_gpu(
    rule: str,
    room: int,
    recorded: int | None,
    tokens: int,
    tries: list[int],
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found: list[int] = []
    monkeypatch.setattr(budget, "packing_obstacle", lambda *_: None)
    monkeypatch.setattr(TokenLoss, "summed", limited(room, found))
    monkeypatch.setattr(budget, "fits_by_estimate", budget.fits_by_trial)
    monkeypatch.setitem(budget.MAX_TOKENS, "cpu", 256)
    model = adapted(SHAPES["Llama"])
    assert batching_for(TokenLoss(model), ROWS, Training(), ALONE, recorded).tokens == tokens, rule
    assert found == tries
    assert model.is_gradient_checkpointing is checkpointing
    assert all(weight.grad is None for weight in model.parameters())
    warned = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"WARNING"' in line]
    expected = ["the longest row, 40 tokens, does not fit without it"] if checkpointing else []
    assert [event["why"] for event in warned] == expected


@pytest.mark.parametrize(
    ("free", "tokens", "checkpointing"),
    [(1 << 40, 512, False), (12 * MIB, 256, False), (3 * MIB, 64, False), (MIB, 64, True), (MIB // 2, 40, True)],
)
def test_token_budget_is_estimated_on_a_cpu(
    free: int, tokens: int, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "free_bytes", lambda *_: HEAP_HOLES_BYTES + free)
    model = adapted(SHAPES["Llama"])
    assert batching_for(TokenLoss(model), ROWS, Training(), ALONE).tokens == tokens
    assert model.is_gradient_checkpointing is checkpointing


@pytest.mark.parametrize(("free", "measured"), [(1 << 40, [64]), (12 * MIB, [64, 16, 32, 64])])
def test_token_budget_takes_one_measurement_if_memory_is_plenty(
    free: int, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the memory of the micro-batches decides then, but the time until the first step."""
    asked: list[int] = []

    def peak(*args: Any, packed: bool) -> int:
        asked.append(args[3])
        return measured_peak(*args, packed=packed)

    monkeypatch.setattr(budget, "measured_peak", peak)
    monkeypatch.setattr(budget, "free_bytes", lambda *_: HEAP_HOLES_BYTES + free)
    batching_for(TokenLoss(adapted(SHAPES["Llama"])), ROWS, Training(), ALONE)
    assert asked == measured


@pytest.mark.parametrize("fixed", [0, 5000])
def test_memory_upper_bound_is_never_too_small(fixed: int) -> None:
    cost = Cost(fixed, 100, 0.5)
    peak = cost.fixed + cost.token * 64 + cost.pair * 64**2
    assert all(upper_bound(64, int(peak)).of(tokens) >= cost.of(tokens) for tokens in (64, 100, 512, 4096))


@pytest.mark.parametrize(("setting", "free", "on"), [("Always", 1 << 40, True), ("Never", MIB // 2, False)])
def test_gradient_checkpointing_setting(
    setting: str, free: int, on: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "free_bytes", lambda *_: HEAP_HOLES_BYTES + free)
    model = adapted(SHAPES["Llama"])
    training = Training.model_validate({"gradientCheckpointing": setting})
    assert batching_for(TokenLoss(model), ROWS, training, ALONE).tokens >= 40
    assert model.is_gradient_checkpointing is on
    assert ("the longest row may not fit into memory" in capsys.readouterr().out) is not on


def test_packing_never() -> None:
    training = Training.model_validate({"packing": "Never"})
    assert not batching_for(TokenLoss(adapted(SHAPES["Llama"])), ROWS, training, ALONE).packed


def test_micro_batch_size_overrides_the_token_budget() -> None:
    batching = batching_for(TokenLoss(adapted(SHAPES["Llama"])), ROWS, Training(micro_batch_size=2), ALONE, 128)
    assert (batching.rows, batching.packed) == (2, True)


REAL_PEAK = """
import sys
import torch
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.trials.budget import estimated_cost, forward_and_backward, worst_micro_batch
from tests.unit.trainer.test_budget import ALONE, ROWS
from tests.unit.trainer.test_packing import SHAPES, adapted

def resident(what):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1])

torch.set_num_threads(1)
tokens = int(sys.argv[2])
loss = TokenLoss(adapted(SHAPES["Llama"], sys.argv[1]))
cost = estimated_cost(loss, ROWS, ALONE, packed=True)
before = resident("VmRSS")
forward_and_backward(loss, worst_micro_batch(ROWS, tokens, 512, ALONE, packed=True))
print(cost.of(tokens), resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "tokens"), [("sdpa", 4096), ("eager", 2048)])
def test_memory_estimate_is_one_to_three_times_the_real_peak(attention: str, tokens: int) -> None:
    process = subprocess.run(
        [sys.executable, "-c", REAL_PEAK, attention, str(tokens)],
        env={"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/operator:{REPOSITORY}/trainer_image", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    estimate, real = map(float, process.stdout.splitlines()[-1].split())
    assert real <= estimate <= 3 * real
