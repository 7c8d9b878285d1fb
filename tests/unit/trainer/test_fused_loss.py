"""The fused loss: the same loss and gradients as with full logits, without ever having them in memory."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from sluice_api.reasons import Reason
from sluice_trainer.errors import StageError
from sluice_trainer.train import fused_cross_entropy as kernel
from sluice_trainer.train import loss as losses
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.fused_cross_entropy import IDENTITY, LogitTransform, fused_cross_entropy
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.trials.fused_loss import verify_fused_loss
from tests.unit.trainer.jobs import Job

VOCABULARY, HIDDEN, POSITIONS, LOSS_TOKENS = 300, 64, 40, 23
TRANSFORMS = {
    "identity": IDENTITY,
    "scaled": LogitTransform(0.125),
    "capped": LogitTransform(1.0, 3.0),
    "both": LogitTransform(2.0, 5.0),
}
MODELS: dict[str, tuple[dict[str, Any], LogitTransform]] = {
    "llama": ({}, IDENTITY),
    "mistral": ({}, IDENTITY),
    "qwen2": ({}, IDENTITY),
    "qwen3": ({}, IDENTITY),
    "phi": ({}, IDENTITY),  # a head with a bias
    "gemma2": ({"final_logit_softcapping": 2.0}, LogitTransform(1.0, 2.0)),
    "gemma3_text": ({}, IDENTITY),
    "granite": ({"logits_scaling": 8.0}, LogitTransform(0.125)),
    "cohere": ({"logit_scale": 0.0625}, LogitTransform(0.0625)),
    "hyperclovax": ({"logits_scaling": 0.5}, LogitTransform(0.5)),  # the same name as Granite's, and multiplies
    "opt": ({"ffn_dim": 128, "word_embed_proj_dim": HIDDEN}, IDENTITY),  # its decoder is deeper inside
    "xlstm": (  # its head gets every position
        {"qk_dim_factor": 1.0, "output_logit_soft_cap": 2.0},
        LogitTransform(1.0, 2.0),
    ),
    "mixtral": ({"num_local_experts": 4}, IDENTITY),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 positions by 131 tokens in float32, or 7 by all where the head is trained: the last ones are not whole."""
    monkeypatch.setattr(kernel, "TILE_BYTES", 4 * VOCABULARY * 7)
    monkeypatch.setattr(kernel, "TILE_POSITIONS", 16)


def model_of(model_type: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A tiny random model with logits of a trained one's size."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**sizes, **heads, **tokens, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model.eval()


def batch() -> MicroBatch:
    """Two rows, with some of their tokens in the loss."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (2, 30), generator=generator)
    return MicroBatch(ids, torch.rand(2, 30, generator=generator) < 0.5)


def own_loss(model: Any, batch: MicroBatch) -> Tensor:
    """As the model works it out."""
    labels = batch.input_ids.masked_fill(~batch.loss_mask, -100)
    return model(input_ids=batch.input_ids, labels=labels).loss * batch.loss_mask[:, 1:].sum()  # type: ignore[no-any-return]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (loss / LOSS_TOKENS).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@contextmanager
def without_full_logits(model: Any) -> Iterator[None]:
    """What stands in for the head makes none."""

    def look(_: nn.Module, __: Any, logits: Tensor) -> None:
        assert logits.shape[-1] == 0

    handle = model.get_output_embeddings().register_forward_hook(look)
    yield
    handle.remove()


def relative_error(found: Tensor, truth: Tensor) -> float:
    """By how much of the truth's length something is beside it."""
    return float((found.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_fused_loss_is_as_precise_as_full_logits(
    dtype: torch.dtype, trained: bool, bias: bool, transform: LogitTransform
) -> None:
    """The truth is the same in float64."""
    torch.manual_seed(0)
    linear = nn.Linear(HIDDEN, VOCABULARY, bias=bias).to(dtype).requires_grad_(trained)
    linear.weight.data.mul_(8)
    hidden = torch.randn(POSITIONS, HIDDEN).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (POSITIONS,))

    def full(hidden: Tensor, linear: nn.Linear, wide: torch.dtype) -> Tensor:
        logits = linear(hidden).to(wide) * transform.scale
        logits = logits if transform.cap is None else transform.cap * torch.tanh(logits / transform.cap)
        return cross_entropy(logits, targets, reduction="sum")

    def costs(loss: Tensor, *by: Tensor | None) -> list[Tensor]:
        wanted = [each for each in by if each is not None and each.requires_grad]
        return [loss.detach(), *torch.autograd.grad(loss / LOSS_TOKENS, wanted)]

    exact = nn.Linear(HIDDEN, VOCABULARY, bias=bias).double().requires_grad_(trained)
    exact.load_state_dict({name: weight.double() for name, weight in linear.state_dict().items()})
    wide = hidden.detach().double().requires_grad_()
    truth = costs(full(wide, exact, torch.float64), wide, exact.weight, exact.bias)
    plain = costs(full(hidden, linear, torch.float32), hidden, linear.weight, linear.bias)
    fused = costs(fused_cross_entropy(hidden, linear, targets, transform).sum(), hidden, linear.weight, linear.bias)
    assert len(fused) == len(truth) == 2 + trained * (1 + bias)
    for ours, theirs, true in zip(fused, plain, truth, strict=True):
        assert ours.dtype == theirs.dtype
        assert relative_error(ours, true) < 1.5 * relative_error(theirs, true) + 1e-6


@pytest.mark.parametrize(
    ("grad", "trained", "products"),
    [(torch.inference_mode, False, 1), (torch.enable_grad, False, 2), (torch.enable_grad, True, 3)],
    ids=["inference", "frozen", "trained"],
)
def test_fused_loss_computes_each_matrix_product_once(grad: Any, trained: bool, products: int) -> None:
    linear = nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(trained)
    hidden, targets = torch.randn(POSITIONS, HIDDEN, requires_grad=True), torch.arange(POSITIONS)
    in_place = {torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * math.prod(left) * right[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, grad():
        loss = fused_cross_entropy(hidden, linear, targets).sum()
    assert loss.requires_grad == (products > 1)
    assert counter.get_total_flops() == products * 2 * POSITIONS * VOCABULARY * HIDDEN


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_fused_loss_under_autocast(trained: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(HIDDEN, VOCABULARY).requires_grad_(trained)
    hidden, targets = torch.randn(POSITIONS, HIDDEN, requires_grad=True), torch.arange(POSITIONS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused_cross_entropy(hidden, linear, targets).sum()
    loss.backward()
    exact = cross_entropy(linear(hidden), targets, reduction="sum")
    truth = torch.autograd.grad(exact, [hidden, *(linear.parameters() if trained else ())])
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=0)
    for found, true in zip([hidden.grad, *(linear.weight.grad, linear.bias.grad) * trained], truth, strict=True):
        assert found is not None
        assert found.dtype == torch.float32
        assert relative_error(found, true) < 1e-2


@pytest.mark.parametrize("token", [1, 299])
def test_fused_loss_of_an_infinite_logit_is_nan(token: int) -> None:
    """Neither where it is the target's, nor where it is another token's."""
    linear = nn.Linear(1, VOCABULARY, bias=False).requires_grad_(False)
    linear.weight[token] = math.inf
    losses = fused_cross_entropy(torch.ones(VOCABULARY, 1, requires_grad=True), linear, torch.arange(VOCABULARY))
    assert losses.isnan().all()


@pytest.mark.parametrize("target", [-100, -1, VOCABULARY])
def test_fused_loss_of_a_target_outside_the_vocabulary_is_nan(target: int) -> None:
    """A number would be believed."""
    with torch.inference_mode():
        (loss,) = fused_cross_entropy(torch.randn(1, HIDDEN), nn.Linear(HIDDEN, VOCABULARY), torch.tensor([target]))
    assert loss.isnan()


@pytest.mark.parametrize("rising", [True, False], ids=["rising", "falling"])
def test_fused_loss_of_logits_far_apart(rising: bool) -> None:
    """exp() of them or of their differences is no float32, and each block of tokens may have the highest so far."""
    logits = torch.linspace(-900, -100, VOCABULARY)
    logits = logits if rising else logits.flip(0)
    linear = nn.Linear(1, VOCABULARY, bias=False).requires_grad_(False)
    linear.weight.copy_(logits.unsqueeze(1))
    hidden = torch.ones(VOCABULARY, 1, requires_grad=True)
    found = fused_cross_entropy(hidden, linear, torch.arange(VOCABULARY))
    (gradients,) = torch.autograd.grad(found.sum(), hidden)
    exact = logits.double()
    torch.testing.assert_close(found.double(), exact.logsumexp(0) - exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients.squeeze(1).double(), exact.softmax(0) @ exact - exact, rtol=1e-5, atol=1e-4)


def test_fused_loss_has_a_gradient_where_the_target_is_nearly_certain() -> None:
    """As the difference of two probabilities it would be none."""
    linear = nn.Linear(1, 2, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.tensor([[30.0], [0.0]]))
    hidden = torch.ones(1, 1, requires_grad=True)
    loss = fused_cross_entropy(hidden, linear, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss.sum(), hidden)
    assert loss.item() == pytest.approx(math.exp(-30), rel=1e-5)
    assert gradient.item() == pytest.approx(-30 * math.exp(-30), rel=1e-5)


def test_fused_loss_refuses_a_second_backward() -> None:
    """The gradients have been used up by the first one."""
    linear, hidden = nn.Linear(HIDDEN, VOCABULARY), torch.randn(7, HIDDEN, requires_grad=True)
    loss = fused_cross_entropy(hidden, linear, torch.arange(7)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("model_type", MODELS)
def test_fused_loss_and_gradients_are_the_models_own(model_type: str) -> None:
    settings, transform = MODELS[model_type]
    model, rows = model_of(model_type, **settings), batch()
    truth = own_loss(model, rows)
    expected = gradients(model, truth)
    token_loss = verify_fused_loss(TokenLoss(model), rows.input_ids[:1], rows.loss_mask[:1])
    assert token_loss.fused_head is not None
    assert token_loss.fused_head.transform == transform
    with without_full_logits(model):
        loss = token_loss.summed(rows)
    torch.testing.assert_close(loss, truth, rtol=1e-5, atol=1e-4)
    found = gradients(model, loss)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
def test_fused_loss_gives_an_adapter_its_gradients_with_a_frozen_head(tied: bool) -> None:
    model = get_peft_model(
        model_of("llama", tie_word_embeddings=tied), LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    rows = batch()
    expected = gradients(model.train(), own_loss(model, rows))
    token_loss = verify_fused_loss(TokenLoss(model), rows.input_ids[:1], rows.loss_mask[:1])
    assert model.training
    with without_full_logits(model):
        found = gradients(model, token_loss.summed(rows))
    assert found.keys() == expected.keys()
    assert all("lora_" in name for name in found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_fused_loss_of_a_tied_head_adds_to_the_embeddings_gradient() -> None:
    model, rows = model_of("llama", tie_word_embeddings=True), batch()
    expected = gradients(model, own_loss(model, rows))["model.embed_tokens.weight"]
    token_loss = verify_fused_loss(TokenLoss(model), rows.input_ids[:1], rows.loss_mask[:1])
    found = gradients(model, token_loss.summed(rows))["model.embed_tokens.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_fused_loss_in_bfloat16() -> None:
    model, rows = model_of("gemma2", torch.bfloat16), batch()
    token_loss = verify_fused_loss(TokenLoss(model), rows.input_ids[:1], rows.loss_mask[:1])
    with without_full_logits(model):
        loss = token_loss.summed(rows)
    torch.testing.assert_close(loss, own_loss(model, rows), rtol=1e-2, atol=0)


def adapted_head() -> Any:
    return get_peft_model(model_of("llama"), LoraConfig(target_modules=["lm_head"], init_lora_weights=False))


def saved_head() -> Any:
    return get_peft_model(model_of("llama"), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))


def bent_logits() -> Any:
    """Its forward forbids one token."""
    model = model_of("llama")
    forward = model.forward

    def bent(input_ids: Tensor, labels: Tensor | None = None, logits_to_keep: Any = 0, **more: Any) -> Any:
        output = forward(input_ids=input_ids, logits_to_keep=logits_to_keep, **more)
        output.logits = output.logits.index_fill(-1, torch.tensor([5]), -1e4)
        if labels is not None:
            output.loss = model.loss_function(output.logits, labels, VOCABULARY)
        return output

    model.forward = bent
    return model


def hooked_head() -> Any:
    """Its logits are doubled by a hook."""
    model = model_of("llama")
    model.lm_head.register_forward_hook(lambda _, __, logits: logits * 2)
    return model


def busy_head() -> Any:
    """Its head is called for something else first."""
    model = model_of("llama")

    def also(*_: Any) -> None:
        model.lm_head(torch.zeros(1, 1, HIDDEN))

    model.model.norm.register_forward_hook(also)
    return model


def full_logits(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The log line that says so, among those that reporters of earlier tests may still write."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (found,) = [line for line in lines if line["event"] == "loss from full logits"]
    return dict(found)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (adapted_head, "its output head is of <class 'peft.tuners.lora.layer.Linear'>, not a plain linear layer"),
        (
            saved_head,
            "its output head is of <class 'peft.utils.other.ModulesToSaveWrapper'>, not a plain linear layer",
        ),
        (hooked_head, "its output head has hooks"),
        (busy_head, "what it does to its head's output is neither a scale nor a softcap"),
        (bent_logits, "what it does to its head's output is neither a scale nor a softcap"),
    ],
)
def test_loss_is_of_full_logits_where_the_fused_loss_is_not_verified(
    model: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows = model(), batch()
    token_loss = verify_fused_loss(TokenLoss(model), rows.input_ids[:1], rows.loss_mask[:1])
    line = full_logits(capsys)
    assert (line["level"], line["model_type"]) == ("WARNING", "llama")
    assert line["reason"] == reason
    truth = own_loss(model, rows)
    expected = gradients(model, truth)
    loss = token_loss.summed(rows)
    torch.testing.assert_close(loss, truth, rtol=1e-5, atol=1e-4)
    for name, gradient in gradients(model, loss).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_fused_loss_that_differs_from_the_models_own_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows = model_of("llama"), batch()
    monkeypatch.setattr(losses, "fused_cross_entropy", lambda *args: fused_cross_entropy(*args) * 1.001)
    token_loss = verify_fused_loss(TokenLoss(model), rows.input_ids[:1], rows.loss_mask[:1])
    assert "the fused loss of a piece of the first row is" in full_logits(capsys)["reason"]
    torch.testing.assert_close(token_loss.summed(rows), own_loss(model, rows), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("mixtral", {"num_local_experts": 4, "output_router_logits": True}),
        ("bamba", {"z_loss_coefficient": 1e-4, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16}),
        ("bart", {"d_model": HIDDEN, "encoder_layers": 1, "decoder_layers": 1}),
    ],
)
def test_model_that_adds_another_loss_is_refused(model_type: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    rows = batch()
    with pytest.raises(StageError) as raised:
        verify_fused_loss(TokenLoss(model_of(model_type, dtype, **settings)), rows.input_ids[:1], rows.loss_mask[:1])
    assert raised.value.reason == Reason.MODEL_INVALID
    assert f"What a model of type {model_type} calls its loss is" in raised.value.message
    assert "Turn its other loss off in config.json" in raised.value.message


def test_training_uses_the_fused_loss(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.prepare()
    job.train()
    assert '"event": "fused loss"' in capsys.readouterr().out


def test_fused_loss_takes_the_memory_of_one_tile() -> None:
    """1,024 positions of 152k tokens; as many logits take 622 MB, and the usual way several times that."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_loss", "fused", "151936", "32", "0", "1024"],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert json.loads(found.stdout)["extra_mb"] < 250
