"""Rows of which one answer is chosen and one rejected: DPO, exact in packs and side by side."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import log_softmax, logsigmoid

from sluice_api.reasons import Reason
from sluice_api.training import OverlongRows
from sluice_trainer import base_model
from sluice_trainer.data.overlong import fit_pair
from sluice_trainer.data.row import BadRowError
from sluice_trainer.data.tokenise import Tokeniser
from sluice_trainer.errors import StageError
from sluice_trainer.ranks import Rank
from sluice_trainer.token_rows import TokenRow, TokenRows
from sluice_trainer.train.batches import MicroBatch, batches_of
from sluice_trainer.train.fused_cross_entropy import fused_cross_entropy
from sluice_trainer.train.group import Group
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.objective import Preference
from sluice_trainer.train.packing import Batching
from sluice_trainer.train.trials.fused_loss import verify_fused_loss
from sluice_trainer.train.weights.model import load, trainable
from tests.unit.trainer.jobs import Job, write_rows

CPU = torch.device("cpu")
ROWS = [
    {
        "prompt": f"What is item {i}?",
        "chosen": f"Arr, {i * 7} doubloons!",
        "rejected": f"Item {i}: {i} euros, sir. " * 2,
    }
    for i in range(40)
]
TRAINING = (("epochs", 3), ("learningRate", "5e-3"), ("warmupSteps", 2))


@pytest.fixture
def pairs(job: Job) -> Job:
    """A job on such rows."""
    write_rows(job.volumes / "datasets" / "rows.jsonl", ROWS)
    return replace(job, training=TRAINING, spec=(("lora", {"rank": 8, "alpha": 64}),))


def model_with_nonzero_adapter(job: Job) -> PeftModel:
    """A model whose adapter says something."""
    model = load(base_model.locate("pvc://models/tiny"), job.stage("Train").spec, CPU)
    assert isinstance(model, PeftModel)
    torch.manual_seed(0)
    for weight in trainable(model).values():
        nn.init.normal_(weight, std=0.05)
    return model


def preference_loss_by_hand(model: PeftModel, rows: list[TokenRow], beta: float) -> Tensor:
    """As the paper writes it, each answer by itself, from all logits."""

    def answer(row: TokenRow) -> Tensor:
        ids = torch.from_numpy(row.input_ids).long().unsqueeze(0)
        each = log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1).gather(1, ids[0, 1:, None]).squeeze(1)
        return each[torch.from_numpy(row.loss_mask[1:]).bool()].sum()

    total = torch.zeros(())
    for row in rows:
        margins = []
        for side in row.answers():
            with torch.no_grad(), model.disable_adapter():
                reference = answer(side)
            margins.append(answer(side) - reference)
        total = total - logsigmoid(beta * (margins[0] - margins[1]))
    return total


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("made", [MicroBatch.packed, MicroBatch.of], ids=["packed", "padded"])
def test_preference_loss_and_gradients_are_those_of_the_paper(pairs: Job, made: Any, fused: bool) -> None:
    pairs.prepare()
    rows = [pairs.prepared().training[index] for index in range(3)]
    model = model_with_nonzero_adapter(pairs)
    expected = preference_loss_by_hand(model, rows, 0.3)
    expected.backward()
    expected_gradients = {name: weight.grad for name, weight in trainable(model).items()}
    model.zero_grad()
    token_loss = TokenLoss(model)
    if fused:
        one = MicroBatch.of([rows[0]], CPU)
        token_loss = verify_fused_loss(token_loss, one.input_ids[:1], one.loss_mask[:1])
    loss = Preference(0.3).summed_loss(token_loss, made(rows, CPU))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for name, weight in trainable(model).items():
        torch.testing.assert_close(weight.grad, expected_gradients[name], rtol=1e-3, atol=1e-5)


def test_preference_training_from_ln_2_down(pairs: Job) -> None:
    pairs.prepare()
    result = pairs.train()
    assert result.evaluation_loss_before == pytest.approx(math.log(2), abs=1e-6)
    assert result.evaluation_loss_after < 0.4  # type: ignore[operator]
    pairs.export()


def test_longest_sequence_is_the_longer_side_of_a_pair(pairs: Job) -> None:
    pairs.prepare()
    rows = pairs.prepared().training
    sides = (side for index in range(len(rows)) for side in rows[index].answers())
    assert rows.longest_sequence == max(len(side.input_ids) for side in sides) < max(rows.lengths)


def test_preference_training_has_no_dropout(pairs: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """With any, the first loss would not be that of a model that prefers nothing."""
    config = pairs.volumes / "models" / "tiny" / "config.json"
    text = json.loads(config.read_text()) | {"attention_dropout": 0.3}
    config.unlink()  # the tests share the file
    config.write_text(json.dumps(text))
    pairs = replace(
        pairs,
        training=(*TRAINING, ("maxSteps", 1), ("warmupSteps", 0)),
        spec=(("lora", {"rank": 8, "dropout": "0.3"}),),
    )
    pairs.prepare()
    pairs.train()
    (loss,) = [
        line["loss"] for line in map(json.loads, capsys.readouterr().out.splitlines()) if line["event"] == "step"
    ]
    assert loss == pytest.approx(math.log(2), abs=1e-6)


def test_preference_pairs_with_padding_keep_the_token_budget() -> None:
    sides = [(answer(*range(1, 500)), answer(1, 2, 3)), (answer(1, 2, 4), answer(*range(1, 400)))]
    rows = TokenRows.of([TokenRow.pair(*each) for each in (*sides, *sides)])
    assert rows.sizes(range(4), packed=True) == [502, 402, 502, 402]
    assert rows.sizes(range(4), packed=False) == [998, 798, 998, 798]
    batches = list(batches_of(rows, range(4), Batching(packed=False, tokens=2000), Group(Rank(), CPU)))
    assert [batch.input_ids.numel() for _, batch, _ in batches] == [4 * 499, 4 * 399]


def test_preference_result_does_not_depend_on_micro_batch_size(pairs: Job) -> None:
    whole = replace(pairs, name="whole")
    parts = replace(pairs, name="parts", training=(*TRAINING, ("microBatchSize", 2)))
    losses = []
    for each in (whole, parts):
        each.prepare()
        losses.append(each.train().evaluation_loss_after)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_loss_mask_of_a_pair_has_only_the_two_answers(pairs: Job) -> None:
    asked = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ahoy"},
        {"role": "user", "content": "?"},
    ]
    row = {"prompt": asked, "chosen": [{"role": "assistant", "content": "Yes"}], "rejected": "No way"}
    write_rows(pairs.volumes / "datasets" / "rows.jsonl", [row])
    pairs.prepare()
    (pair,) = [pairs.prepared().training[0]]
    tokenizer = Tokeniser(base_model.locate("pvc://models/tiny"), 256, OverlongRows.TRUNCATE)._tokenizer
    in_loss = [tokenizer.decode(side.input_ids[side.loss_mask == 1]) for side in pair.answers()]
    assert in_loss == ["Yes<|im_end|>", "No way<|im_end|>"]
    asked_again = [tokenizer.decode(side.input_ids[side.loss_mask == 0]) for side in pair.answers()]
    assert asked_again[0] == asked_again[1]


TURN = {"role": "assistant", "content": "Yes"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "?", "chosen": "Yes", "rejected": ""}, '"rejected" is empty'),
        ({"prompt": "?", "chosen": 3, "rejected": "No"}, '"chosen" is a number, not a string'),
        ({"prompt": "?", "chosen": "Yes", "rejected": "Yes"}, '"chosen" and "rejected" are the same'),
        ({"prompt": [TURN], "chosen": "Yes", "rejected": "No"}, '"prompt" ends with the assistant'),
        ({"prompt": "?", "chosen": [TURN, TURN], "rejected": "No"}, '"chosen" is not one turn of the assistant'),
        ({"prompt": "?", "chosen": "Yes"}, 'the row has "prompt", "chosen", not "chosen" and "rejected"'),
    ],
)
def test_preference_rows_without_a_preference_are_refused(pairs: Job, row: dict[str, Any], problem: str) -> None:
    write_rows(pairs.volumes / "datasets" / "rows.jsonl", [row])
    with pytest.raises(StageError) as raised:
        pairs.prepare()
    assert raised.value.reason == Reason.DATASET_INVALID
    assert f"line 1: {problem}" in raised.value.message


def test_preference_with_method_full_is_refused(pairs: Job) -> None:
    with pytest.raises(StageError) as raised:
        replace(pairs, spec=(("method", "Full"),)).prepare()
    assert raised.value.message.endswith("Set method: LoRA or QLoRA.")


def answer(*ids: int) -> TokenRow:
    return TokenRow(np.array(ids, np.int32), np.array([0, 0, *[1] * (len(ids) - 2)], np.uint8), line=7)


def test_preference_pairs_that_are_too_long() -> None:
    short, long = answer(1, 2, 3), answer(1, 2, 4, 5, 6)
    (pair,) = fit_pair([short, long], 4, OverlongRows.TRUNCATE)
    assert [side.input_ids.tolist() for side in pair.answers()] == [[1, 2, 3], [1, 2, 4, 5]]
    assert (pair.line, fit_pair([short, long], 4, OverlongRows.DROP)) == (7, [])
    with pytest.raises(BadRowError, match="the same up to maxSequenceLength 3"):
        fit_pair([answer(1, 2, 4, 9), long], 3, OverlongRows.TRUNCATE)
    with pytest.raises(BadRowError, match="an answer has more than maxSequenceLength 4 tokens"):
        fit_pair([short, long], 4, OverlongRows.SPLIT)
    with pytest.raises(BadRowError) as raised:
        fit_pair([short, long], 2, OverlongRows.TRUNCATE)
    assert raised.value.remedy == "Shorten the row, or raise training.maxSequenceLength", "it can't be split"


@pytest.mark.parametrize(("boundary", "is_taken"), [(None, True), (5, True), (2, True), (3, False), (4, False)])
def test_preference_pair_on_both_sides_of_the_rope_boundary_is_refused(boundary: int | None, *, is_taken: bool) -> None:
    """Its answers are always in one micro-batch, where longrope would give the shorter one the longer one's factors."""
    sides = [answer(1, 2, 3), answer(1, 2, 4, 5, 6)]
    if is_taken:
        assert len(fit_pair(sides, 100, OverlongRows.TRUNCATE, boundary)) == 1
        return
    with pytest.raises(BadRowError, match=f"one of its answers is longer than {boundary} tokens and the other is not"):
        fit_pair(sides, 100, OverlongRows.TRUNCATE, boundary)


def test_fused_loss_of_a_trained_head_refuses_weights_by_position() -> None:
    head, hidden = nn.Linear(8, 20), torch.randn(5, 8, requires_grad=True)
    losses = fused_cross_entropy(hidden, head, torch.arange(5))
    with pytest.raises(ValueError, match="all positions must weigh the same"):
        (losses * torch.arange(5.0)).sum().backward()


def test_preference_loss_in_the_log_is_by_pair(pairs: Job, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = replace(pairs, training=(*TRAINING, ("maxSteps", 1), ("warmupSteps", 0)))
    pairs.prepare()
    pairs.train()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (step,) = [line for line in lines if line["event"] == "step"]
    assert step["loss"] == pytest.approx(math.log(2), abs=1e-6)
