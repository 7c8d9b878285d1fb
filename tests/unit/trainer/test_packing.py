"""Packing: the rows of a step in micro-batches that cost less and mean the same."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as t
from peft import LoraConfig, PeftModel, get_peft_model

from sluice_trainer.token_rows import TokenRow, TokenRows
from sluice_trainer.train.batches import MicroBatch, make_micro_batch
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.packing import Batching, micro_batches, pack_into_bins
from sluice_trainer.train.trials import budget
from sluice_trainer.train.trials.packing_check import packing_obstacle, rows_of_a_pack
from tests.unit.trainer.jobs import Job

CPU = torch.device("cpu")

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 0,
    "initializer_range": 0.3,
}
"""Larger weights than usual: what leaks from row to row shows in the loss."""
SHORT_WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

SHAPES = {
    "Llama": t.LlamaConfig(**SHAPE),
    "SmolLM": t.LlamaConfig(
        **{**SHAPE, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True}
    ),
    "Qwen2": t.Qwen2Config(**SHAPE),
    "Qwen2 with a window": t.Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "Qwen3": t.Qwen3Config(**SHAPE),
    "Gemma2": t.Gemma2Config(**SHAPE, **SHORT_WINDOW),
    "Gemma3": t.Gemma3TextConfig(**SHAPE, **SHORT_WINDOW),
    "Mistral": t.MistralConfig(**SHAPE, sliding_window=None),
    "Mistral with a window": t.MistralConfig(**SHAPE, sliding_window=8),
}
HYBRIDS = {
    "LFM2": t.Lfm2Config(**SHAPE, layer_types=["conv", "full_attention", "conv"]),
    "Qwen3.5": t.Qwen3_5TextConfig(
        **SHAPE,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
    ),
}


def random_rows(*lengths: int) -> TokenRows:
    """Rows of random tokens, about two thirds of which are in the loss."""
    draw = np.random.default_rng(0)
    made = (TokenRow(draw.integers(1, 300, n, np.int32), (draw.random(n) < 0.67).astype(np.uint8)) for n in lengths)
    return TokenRows.of(made)


ROWS = random_rows(21, 5, 34, 13)


def adapted(config: t.PreTrainedConfig, attention: str = "sdpa") -> PeftModel:
    """A random model in fp32 with an adapter that is not zero."""
    torch.manual_seed(0)
    base = t.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(base, lora)


def with_loss_only_on(row: int, rows: TokenRows) -> list[TokenRow]:
    """All rows; the loss counts tokens of one of them only."""
    return [replace(rows[index], loss_mask=rows[index].loss_mask * (index == row)) for index in range(len(rows))]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", SHAPES)
def test_packing_keeps_the_loss_of_each_row(shape: str, attention: str) -> None:
    model = adapted(SHAPES[shape], attention)
    assert packing_obstacle(TokenLoss(model), ROWS, CPU, 100) is None
    for index in range(len(ROWS)):
        row = ROWS[index]
        labels = torch.from_numpy(np.where(row.loss_mask == 1, row.input_ids, -100)).long()[None]
        ids = torch.from_numpy(row.input_ids).long()[None]
        loss_tokens = int(row.loss_mask[1:].sum())
        alone = model(input_ids=ids, labels=labels).loss
        packed = TokenLoss(model).summed(MicroBatch.packed(with_loss_only_on(index, ROWS), CPU)) / loss_tokens
        torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_loss_mask_has_an_end_of_turn_that_is_the_pad_token_too(job: Job, packed: bool) -> None:
    job.prepare()
    end = t.AutoTokenizer.from_pretrained(job.volumes / "models" / "tiny").pad_token_id
    rows = [job.prepared().training[index] for index in range(8)]
    batch = make_micro_batch(rows, Batching(packed, 512), CPU)
    assert len({len(row.input_ids) for row in rows}) > 1
    assert batch.input_ids[batch.loss_mask].tolist().count(end) == 8  # one answer a row

    model = adapted(t.LlamaConfig(**{**SHAPE, "pad_token_id": end, "eos_token_id": end}))
    alone = 0.0
    for row in rows:
        labels = torch.from_numpy(np.where(row.loss_mask == 1, row.input_ids, -100)).long()[None]
        assert labels[0, -2] == end  # a line break follows
        alone += model(input_ids=labels.new_tensor(row.input_ids[None]), labels=labels).loss * row.loss_mask.sum()
    torch.testing.assert_close(TokenLoss(model).summed(batch), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", ["Llama", "Gemma3"])
def test_packing_keeps_the_gradients(shape: str) -> None:
    rows = [ROWS[index] for index in range(len(ROWS))]
    pulls = []
    for batches in ([MicroBatch.packed(rows, CPU)], [MicroBatch.of([row], CPU) for row in rows]):
        model = adapted(SHAPES[shape])
        for batch in batches:
            TokenLoss(model).summed(batch).backward()
        pulls.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    torch.testing.assert_close(*pulls, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", HYBRIDS)
def test_packing_obstacle_of_a_model_that_leaks_between_rows(shape: str) -> None:
    why = packing_obstacle(TokenLoss(adapted(HYBRIDS[shape])), ROWS, CPU, 100)
    assert why is not None
    assert "a row is not alone in a pack: its loss differs by " in why


@pytest.mark.parametrize(
    ("rule", "lengths", "most", "boundary", "tried"),
    [
        ("long and short ones in turn", [10, 60, 50, 30], 200, None, [60, 10, 50, 30]),
        ("until the pack is full", [10, 60, 50, 30], 120, None, [60, 10, 50]),
        ("the longest beside which another fits", [10, 100, 50, 30], 100, None, [50, 10, 30]),
        ("two of the same length", [40, 40], 80, None, [40, 40]),
        ("no two fit", [60, 50], 100, None, None),
        ("one row", [60], 100, None, None),
        ("a row of one token shows nothing", [60, 1, 2], 100, None, [60, 2]),
        ("on one side of the boundary", [60, 50, 40, 30], 200, 55, [50, 30, 40]),
        ("of more rows than are tried", [*range(2, 102)], 1000, None, [101, 2, 100, 3, 99, 4, 98, 5, 97, 6, 96, 7]),
        ("none on one side of the boundary", [60, 50], 200, 55, None),
    ],
)
def test_packing_is_tried_on_rows_that_fill_a_pack(
    rule: str, lengths: list[int], most: int, boundary: int | None, tried: list[int] | None
) -> None:
    found = rows_of_a_pack(random_rows(*lengths), most, boundary)
    assert (None if found is None else [len(row.input_ids) for row in found]) == tried, rule


def test_packs_of_many_rows_take_little_time() -> None:
    """Sorted a few times, not once for each possible number of packs: 4,096 rows took 14 s."""
    lengths = np.random.default_rng(0).lognormal(4.5, 0.8, 50_000).clip(5, 600).astype(int).tolist()
    packs = pack_into_bins(lengths, 700)
    assert max(sum(lengths[row] for row in pack) for pack in packs) <= 700
    assert len(packs) < 1.02 * sum(lengths) / 700


PACKED, PADDED = Batching(packed=True, tokens=100), Batching(packed=False, tokens=100)


@pytest.mark.parametrize(
    ("rule", "lengths", "batching", "processes", "expected"),
    [
        ("what fits goes together", [30, 40, 30], PACKED, 1, [[[0, 1, 2]]]),
        ("no more than the budget, and evenly", [60, 60, 30, 30], PACKED, 1, [[[0, 2], [1, 3]]]),
        ("even though they would fill one and leave a rest", [50, 40, 10, 10], PACKED, 1, [[[0, 3], [1, 2]]]),
        ("a longer row goes alone", [150, 20, 30], PACKED, 1, [[[0], [1, 2]]]),
        ("every process has its share", [30, 40, 30, 10], PACKED, 2, [[[1, 3]], [[0, 2]]]),
        ("tokens are shared, not rows", [90, 20, 20, 20, 20], PACKED, 2, [[[0]], [[1, 2, 3, 4]]]),
        ("one row for two processes", [30], PACKED, 2, [[[0]], []]),
        ("no row", [], PACKED, 2, [[], []]),
        ("padded, like goes with like", [10, 50, 10, 50], PADDED, 1, [[[1, 3], [0, 2]]]),
        ("padding counts", [70, 10, 10, 10], PADDED, 1, [[[0], [1, 2, 3]]]),
        ("rows, if a person says so", [90, 90, 9, 9], replace(PACKED, rows=2), 1, [[[0, 1], [2, 3]]]),
        ("rows of each process", [9, 9, 9, 9], replace(PACKED, rows=4), 2, [[[0, 1]], [[2, 3]]]),
        ("rows that are padded are sorted", [90, 9, 90, 9], replace(PADDED, rows=2), 1, [[[0, 2], [1, 3]]]),
        ("either side of a boundary apart", [30, 9, 30, 9], replace(PACKED, boundary=9), 1, [[[1, 3], [0, 2]]]),
        ("also in a number of rows", [30, 9, 30, 9], replace(PACKED, rows=4, boundary=9), 1, [[[1, 3], [0, 2]]]),
    ],
)
def test_micro_batches(
    rule: str, lengths: list[int], batching: Batching, processes: int, expected: list[list[list[int]]]
) -> None:
    beyond = None if batching.boundary is None else [length > batching.boundary for length in lengths]
    assert micro_batches(lengths, batching, processes, beyond) == expected, rule


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("batching", [Batching(True, 700), Batching(False, 700), Batching(True, 700, rows=4)])
def test_micro_batches_have_each_row_once_within_the_token_budget(batching: Batching, processes: int) -> None:
    for seed in range(20):
        lengths = np.random.default_rng(seed).lognormal(4.5, 0.8, 64).clip(5, 600).astype(int).tolist()
        per_rank = micro_batches(lengths, batching, processes)
        assert sorted(itertools.chain(*itertools.chain(*per_rank))) == list(range(64))
        for places in itertools.chain(*per_rank) if batching.rows is None else ():
            inside = [lengths[place] for place in places]
            assert (sum(inside) if batching.packed else max(inside) * len(inside)) <= 700
        if batching.packed and batching.rows is None:
            loads = [sum(lengths[place] for places in own for place in places) for own in per_rank]
            assert max(loads) <= 1.02 * sum(loads) / processes
            assert max(map(len, per_rank)) <= max(loads) // 700 + 2


def test_packing_is_not_used_for_a_model_that_leaks_between_rows(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = replace(job, name="packed", training=(("epochs", 2),), spec=(("lora", {"rank": 8}),))
    padded = replace(packed, name="padded")
    for each in (packed, padded):
        each.prepare()
    loss = packed.train().evaluation_loss_after
    log = capsys.readouterr().out
    assert '"event": "micro-batches", "packed": true' in log
    assert "rows are padded" not in log
    monkeypatch.setattr(budget, "packing_obstacle", lambda *_: "it leaks")
    monkeypatch.delattr(MicroBatch, "packed")
    assert padded.train().evaluation_loss_after == pytest.approx(loss, rel=1e-5)
    assert '"event": "rows are padded, not packed", "why": "it leaks"' in capsys.readouterr().out


def last_state(job: Job) -> bytes:
    return (job.work / "checkpoints" / "step-10" / "state.safetensors").read_bytes()


def test_token_budget_does_not_change_the_loss_and_is_kept_on_resume(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    training = (("epochs", 2), ("checkpointEverySteps", 5))
    job = replace(job, training=training, spec=(("lora", {"rank": 8}),))
    other = replace(job, name="other")
    for each in (job, other):
        each.prepare()
    monkeypatch.setitem(budget.MAX_TOKENS, "cpu", 128)
    small = job.train()
    bits = last_state(job)
    monkeypatch.setitem(budget.MAX_TOKENS, "cpu", 1024)
    assert other.train().evaluation_loss_after == pytest.approx(small.evaluation_loss_after, rel=1e-5)
    assert last_state(other) != bits

    torn = job.work / "checkpoints" / "step-10" / "state.safetensors"
    torn.write_bytes(b"torn")
    assert job.train().resumed_from == 5
    assert last_state(job) == bits
