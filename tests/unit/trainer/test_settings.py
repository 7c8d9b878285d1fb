"""Each setting of `lora` and `training` does what it says, and names that mean nothing are refused before a GPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from sluice_api.reasons import Reason
from sluice_api.training import Training
from sluice_trainer.errors import StageError
from sluice_trainer.layers import Layers, target_layers
from sluice_trainer.plan import learning_rate
from sluice_trainer.report import Reporter
from sluice_trainer.train.weights.model import trainable, with_adapter
from tests.unit.trainer.jobs import Job

NAMES = [f"model.layers.{layer}.{part}" for layer in (0, 1, 12) for part in ("attn.q_proj", "attn.v_proj", "mlp.up")]
LAYERS = Layers(tuple(NAMES), tuple(NAMES), ("model.layers.0.mlp", "model.layers.0.mlp.experts"), "lm_head")


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("Cosine", [1, 2, 2, 1.8660, 1.5, 1, 0.5, 0.1340]),
        ("Linear", [1, 2, 2, 1.6667, 1.3333, 1, 0.6667, 0.3333]),
        ("Constant", [1, 2, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_learning_rate_schedule(schedule: str, rates: list[float]) -> None:
    """Two steps of warm-up and six more."""
    training = Training.model_validate({"learningRate": "2", "schedule": schedule})
    assert [learning_rate(step, 8, training) for step in range(8)] == pytest.approx(rates, abs=1e-4)


@pytest.mark.parametrize(
    ("targets", "means"),
    [
        ([], ["q_proj", "up", "v_proj"]),
        (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (["attn.q_proj"], ["q_proj"]),
        (["*.q_proj"], ["q_proj"]),
        (["model.layers.?.*"], NAMES[0:2] + NAMES[2:6]),
        (["model.layers.1?.attn.*", "up"], [*NAMES[6:8], *NAMES[2::3]]),
    ],
)
def test_target_modules_select_layers(targets: list[str], means: list[str]) -> None:
    assert target_layers(LAYERS, targets) == sorted(means)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("q_prj", "Did you mean q_proj?"),
        ("expert", "Its linear layers are called q_proj, up, v_proj."),
        ("proj", "Did you mean"),
        ("model.layers.9?.*", "Its linear layers are called"),
    ],
)
def test_target_modules_that_match_no_layer_are_refused(target: str, hint: str) -> None:
    with pytest.raises(StageError) as raised:
        target_layers(LAYERS, ["q_proj", target])
    assert raised.value.message.startswith(
        f"lora.targetModules: no linear layer of the model is called {target}. {hint}"
    )


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("lm_head", "lm_head is the output head, which no adapter goes beside. Use method: Full."),
        ("experts", "experts is no linear layer (a mixture of experts may have its experts in one tensor)"),
    ],
)
def test_target_modules_that_are_no_layers_are_refused(target: str, why: str) -> None:
    with pytest.raises(StageError) as raised:
        target_layers(LAYERS, ["q_proj", target])
    assert raised.value.message.startswith(f"lora.targetModules: {why}")


def test_target_modules_are_whole_names_where_a_tensor_of_the_model_has_their_last_name() -> None:
    """PEFT passes over all layers called down_proj, without a word, where the experts' tensor is called so too."""
    layers = Layers(("a.mlp.down_proj",), ("a.mlp.down_proj",), ("a.experts.down_proj",))
    assert target_layers(layers, []) == ["a.mlp.down_proj"]
    assert target_layers(Layers(("a.mlp.down_proj",), ("a.mlp.down_proj",)), []) == ["down_proj"]


def test_target_modules_are_checked_by_prepare(job: Job) -> None:
    with pytest.raises(StageError) as raised:
        replace(job, spec=(("lora", {"targetModules": ["q_prjo"]}),)).prepare()
    assert raised.value.reason == Reason.MODEL_INVALID
    assert raised.value.message.endswith("Did you mean q_proj?")


def adapted(job: Job, **lora: Any) -> PeftModel:
    """The tiny model with an adapter."""
    base = AutoModelForCausalLM.from_pretrained(job.volumes / "models" / "tiny", dtype=torch.float32)
    return with_adapter(base, replace(job, spec=(("lora", lora),)).stage("Train").spec)


def test_target_modules_are_the_only_layers_that_change(job: Job) -> None:
    names = trainable(adapted(job, targetModules=["*.1.*.q_proj"]))
    layers = {name.partition(".lora_")[0].rpartition("model.model.")[2] for name in names}
    assert layers == {"layers.1.self_attn.q_proj"}


@pytest.mark.parametrize(("stabilized", "scale"), [(False, 32 / 16), (True, 32 / 4)])
def test_lora_alpha_and_rank_stabilized_scale_the_update(job: Job, stabilized: bool, scale: float) -> None:
    model = adapted(job, rank=16, alpha=32, rankStabilized=stabilized)
    assert {layer.scaling["default"] for layer in model.modules() if isinstance(layer, LoraLayer)} == {scale}


SETTINGS = {
    "weightDecay": "0.9",
    "adamBeta1": "0.1",
    "adamBeta2": "0.1",
    "adamEpsilon": "0.1",
    "maxGradientNorm": "0.000001",
    "schedule": "Constant",
    "warmupSteps": 0,
    "learningRate": "1e-2",
    "seed": 7,
}


@pytest.fixture
def quick(job: Job) -> Job:
    """Four steps, the first of them warm-up."""
    return replace(job, training=(("maxSteps", 4), ("learningRate", "1e-3")))


def result_of(job: Job) -> float:
    """The loss on the held-out rows at the end."""
    job.prepare()
    loss = job.train().evaluation_loss_after
    assert loss is not None
    return loss


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_changes_the_result(quick: Job, setting: str) -> None:
    changed = replace(quick, name="changed", training=(*quick.training, (setting, SETTINGS[setting])))
    assert result_of(changed) != result_of(quick)


def test_attention_setting_does_not_change_the_result(quick: Job) -> None:
    results = [
        result_of(replace(quick, name=how.lower(), training=(*quick.training, ("attention", how))))
        for how in ("Eager", "SDPA")
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_target_modules_are_in_the_exported_adapter(quick: Job) -> None:
    some = replace(quick, spec=(("lora", {"rank": 8, "targetModules": ["*.1.*"]}),))
    some.prepare()
    some.train()
    some.export()
    exported = AutoModelForCausalLM.from_pretrained(some.volumes / "models" / "tiny", dtype=torch.float32)
    model = PeftModel.from_pretrained(exported, some.work / "export")
    assert {name.split(".")[4] for name, _ in model.named_parameters() if "lora_" in name} == {"1"}


def test_evaluate_every_steps(quick: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    at = [0]
    update = Reporter.update

    def seen(self: Reporter, **changes: Any) -> None:
        at[0] = changes.get("step", at[0])
        if "evaluation_loss" in changes:
            steps.append(at[0])
        update(self, **changes)

    monkeypatch.setattr(Reporter, "update", seen)
    job = replace(quick, training=(("maxSteps", 7), ("evaluateEverySteps", 3)))
    job.prepare()
    job.train()
    assert steps == [0, 3, 6, 7]


@pytest.mark.slow
def test_compile_does_not_change_the_result(job: Job) -> None:
    settings = (("epochs", 1), ("maxSteps", 2), ("warmupSteps", 0))
    losses = []
    for name, compiled in (("plain", False), ("compiled", True)):
        each = replace(job, name=name, training=(*settings, ("compile", compiled)), spec=(("lora", {"rank": 8}),))
        each.prepare()
        counters.clear()
        losses.append(each.train().evaluation_loss_after)
        assert (counters["stats"]["unique_graphs"] > 0) is compiled
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("asked", "total", "rates"),
    [
        (4, 8, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (0, 4, [1, 1, 1, 1]),
        (3, 4, [1 / 3, 2 / 3, 1, 1]),
        (10, 4, [1, 1, 1, 1]),
        (10, 8, [0.5, 1, 1, 1, 1, 1, 1, 1]),
        (10, 100, [*(step / 10 for step in range(1, 11)), *[1] * 90]),
    ],
)
def test_warmup_is_as_long_as_was_asked_for(asked: int, total: int, rates: list[float]) -> None:
    training = Training.model_validate({"learningRate": "1", "schedule": "Constant", "warmupSteps": asked})
    assert [learning_rate(step, total, training) for step in range(total)] == pytest.approx(rates)


@pytest.mark.parametrize(("warmup", "is_taken"), [(10, True), (14, True), (15, False), (100, False)])
def test_warmup_that_training_ends_before_is_refused(job: Job, warmup: int, *, is_taken: bool) -> None:
    job = replace(job, training=(("warmupSteps", warmup),))
    if is_taken:
        assert job.prepare().steps == 15
        return
    with pytest.raises(StageError) as raised:
        job.prepare()
    assert raised.value.message == (
        f"training.warmupSteps {warmup} is not less than the 15 steps of this training, so its learning rate would "
        "never be at its peak. Lower it, leave it out, or raise training.epochs."
    )
