"""How long training takes: operations are counted, and divided by what a GPU does."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sluice_api.training import Method
from sluice_trainer.data.estimate.memory import Setting
from sluice_trainer.data.estimate.speed import Device, Work, device_of, operations, seconds_range
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.trials.fused_loss import verify_fused_loss
from sluice_trainer.train.weights.model import turn_dropout_off
from tests.unit.trainer.estimate.measured import MODELS, Case
from tests.unit.trainer.test_packing import random_rows

LENGTH = 192


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", [Method.LORA, Method.FULL])
@pytest.mark.parametrize("model", ["Llama", "Phi3"])
def test_operations_are_what_torch_counts(model: str, method: Method, checkpointing: bool) -> None:
    case = Case(MODELS[model], method, "float32")
    batch = MicroBatch.of([random_rows(LENGTH)[0]], torch.device("cpu"))
    batch = replace(batch, loss_mask=torch.ones_like(batch.loss_mask))
    loss = verify_fused_loss(TokenLoss(case.model_loaded()), batch.input_ids, batch.loss_mask)
    loss.model.train()
    turn_dropout_off(loss.model)
    if checkpointing:
        loss.model.gradient_checkpointing_enable({"use_reentrant": False})
    with FlopCounterMode(display=False) as counter:
        loss.summed(batch).backward()
    # With checkpointing, what a layer ends with is not computed again: nothing needs it.
    # torch counts neither attention on a CPU nor products that are added in place: all of the head's but the logits.
    model_, adapter = operations(case.shape, Setting(method, 4, checkpointing=checkpointing), Work(LENGTH, 0, 0))
    logits = 2 * case.shape.head_size * (LENGTH - 1)
    assert model_ + adapter + logits == pytest.approx(counter.get_total_flops(), rel=0.07 if checkpointing else 0.02)


def test_operations_of_attention_and_of_the_head_grow_as_they_should() -> None:
    shape, setting = Case(MODELS["Llama"]).shape, Setting(Method.LORA, 2)
    bare, _ = operations(shape, setting, Work(1000, 0, 0))
    read, _ = operations(shape, setting, Work(1000, 0, 100))
    # 6 layers, 128 features; each token meets half of its row twice, forward, and twice as often backward.
    assert read - bare == 1000 * 6 * 128 * 2 * 100 * 3
    learnt, _ = operations(shape, setting, Work(1000, 500, 0))
    assert learnt - bare == 500 * 4 * 128 * 2000


def test_operations_of_lora_are_two_thirds_of_full() -> None:
    work = Work(1000, 500, 100)
    full, _ = operations(Case(MODELS["Llama"], Method.FULL).shape, Setting(Method.FULL, 2), work)
    lora, adapter = operations(Case(MODELS["Llama"]).shape, Setting(Method.LORA, 2), work)
    assert 0.6 < lora / full < 0.72
    assert 0 < adapter < lora


@pytest.mark.parametrize(
    ("product", "tera"),
    [
        ("NVIDIA-H100-80GB-HBM3", 989),
        ("NVIDIA-H100-PCIe", 756),
        ("NVIDIA-H100-NVL", 835),
        ("NVIDIA-H200", 989),
        ("NVIDIA-A100-SXM4-80GB", 312),
        ("NVIDIA-A100-PCIE-40GB", 312),
        ("NVIDIA-A10G", 70),
        ("NVIDIA-A10", 125),
        ("NVIDIA-L4", 121),
        ("NVIDIA-L40S", 362),
        ("NVIDIA-GeForce-RTX-4090", 165.2),
        ("NVIDIA H100 80GB HBM3", 989),
        ("Tesla-T4", 0),
        ("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", None),
        ("NVIDIA-A100-SXM4-80GB-SHARED", None),
        ("NVIDIA-H1000", None),
        ("AMD-Instinct-MI300X", None),
        ("", None),
    ],
)
def test_gpu_is_known_by_its_label(product: str, tera: float | None) -> None:
    device = device_of(product)
    assert (device.bfloat16 if device else None) == tera


def test_seconds_fall_with_gpus_and_never_below_what_launching_takes() -> None:
    shape, setting, device = Case(MODELS["Llama"]).shape, Setting(Method.LORA, 2), Device(100, 10)
    large = Work(10**12, 10**12, 100, micro_batches=10)
    least, most = seconds_range(shape, setting, large, device, 1)
    assert seconds_range(shape, setting, large, device, 4) == pytest.approx((least / 4, most / 4))
    assert most / least == pytest.approx(0.45 / 0.2)
    tiny = Work(10, 10, 10, micro_batches=1000)
    assert seconds_range(shape, setting, tiny, device, 1) == pytest.approx((12, 24)), "6 layers, 2 ms each, 1,000 times"
