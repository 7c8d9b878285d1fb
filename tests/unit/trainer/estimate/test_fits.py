"""A job that no GPU of the pool can hold is refused before it takes one, with remedies that work."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as t
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, PoolFacts
from sluice_api.training import Method
from sluice_trainer.data.estimate.estimate import estimate
from sluice_trainer.data.estimate.fits import require_fits
from sluice_trainer.data.estimate.shape import ModelShape, shape_of
from sluice_trainer.data.estimate.ways import (
    CONTEXT_BYTES,
    GPU_MOST_TOKENS,
    SHARDED_BEYOND,
    RowFacts,
    chosen_way,
    least_way,
)
from sluice_trainer.errors import StageError
from tests.unit.trainer.estimate.measured import spec

GIB = 1 << 30
L40S = PoolFacts(gpu_product="NVIDIA-L40S", gpu_memory_bytes=45 * GIB, price_per_gpu_hour="1.80")
ROWS = RowFacts(
    rows=1000, tokens=200_000, loss_tokens=80_000, longest=900, steps=375, epochs=3.0, validation_tokens=2000
)

with torch.device("meta"):
    BARE = shape_of(
        t.AutoModelForCausalLM.from_config(
            t.LlamaConfig(
                vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
                num_attention_heads=32, num_key_value_heads=8,
            )
        )
    )  # fmt: skip
"""Llama 3 8B."""
LLAMA = BARE.adapted(16)


def shape_for(job: FineTuneJobSpec) -> ModelShape:
    """As Prepare reads it."""
    return BARE if job.method is Method.FULL else LLAMA


def pool(gib: float) -> PoolFacts:
    """A pool of one GPU."""
    return PoolFacts(gpu_memory_bytes=int(gib * GIB))


def refusal(job: FineTuneJobSpec, longest: int, facts: PoolFacts | None) -> str:
    """The message; empty if the job may go on."""
    try:
        require_fits(shape_for(job), job, longest, facts)
    except StageError as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    ("rule", "job", "longest", "facts", "refused"),
    [
        ("nothing is known of the pool", {}, 4096, None, False),
        ("its memory is not known", {}, 4096, PoolFacts(gpu_product="NVIDIA-L4"), False),
        ("16 GB of weights fit 24 GiB", {}, 2048, pool(24), False),
        ("16 GB of weights in 16 GiB, with moments and activations", {}, 2048, pool(15.5), True),
        ("before any row is read, too", {}, 1, pool(14), True),
        ("but not on a guess", {}, 1, pool(18), False),
        ("4 bits fit 16 GiB", {"method": "QLoRA"}, 2048, pool(15.5), False),
        ("8 billion weights, 16 bytes each", {"method": "Full"}, 512, pool(79), True),
        ("sharded over eight GPUs", {"method": "Full", "resources": {"gpus": 8}}, 512, pool(79), False),
        (
            "which the job forbids",
            {"method": "Full", "resources": {"gpus": 8}, "training": {"sharding": "Never"}},
            512,
            pool(79),
            True,
        ),
        (
            "activations that may not be computed twice",
            {"training": {"gradientCheckpointing": "Never"}},
            8192,
            pool(45),
            True,
        ),
        ("a row of 100,000 tokens", {"method": "QLoRA"}, 100_000, pool(24), True),
    ],
)
def test_job_is_refused_when_it_surely_does_not_fit(
    rule: str, job: dict[str, Any], longest: int, facts: PoolFacts | None, refused: bool
) -> None:
    assert bool(refusal(spec(**job), longest, facts)) is refused, rule


def test_refusal_names_need_and_pool_and_what_would_fit() -> None:
    message = refusal(spec(), 2048, replace_product(pool(14), "NVIDIA-Toy"))
    assert re.fullmatch(
        r"Training needs about 1[78](\.\d)?Gi of memory on each GPU, one row of 2,048 tokens at a time, and the "
        r"largest GPU of pool default has 14Gi \(NVIDIA-Toy\)\. What would fit: method: QLoRA \(about [\d.]+Gi\); "
        r"resources\.gpus: 2 \(about [\d.]+Gi\)\.",
        message,
    ), message


def replace_product(facts: PoolFacts, product: str) -> PoolFacts:
    """The same with a name."""
    return facts.model_copy(update={"gpu_product": product})


@pytest.mark.parametrize(
    ("job", "longest", "gib"),
    [
        ({}, 2048, 14),
        ({}, 100_000, 45),
        ({"method": "QLoRA"}, 100_000, 24),
        ({"method": "Full"}, 512, 24),
        ({"method": "Full"}, 512, 79),
        ({"method": "Full", "resources": {"gpus": 4}, "training": {"sharding": "Never"}}, 512, 79),
        ({"method": "Full", "resources": {"gpus": 4}, "training": {"sharding": "Always"}}, 512, 24),
        ({"training": {"gradientCheckpointing": "Never"}}, 8192, 45),
        ({"training": {"gradientCheckpointing": "Never", "sharding": "Always"}, "resources": {"gpus": 2}}, 30_000, 24),
    ],
)
def test_every_remedy_makes_the_job_fit(job: dict[str, Any], longest: int, gib: float) -> None:
    message = refusal(spec(**job), longest, pool(gib))
    remedies = re.sub(r" \(about [^)]*\)", "", message.partition("What would fit: ")[2].removesuffix(".")).split("; ")
    assert remedies != [""], message
    for remedy in remedies:
        changed, tokens = job, longest
        for field, value in re.findall(r"([a-zA-Z.]+): (\w+)", remedy):
            *parents, name = field.split(".")
            if name == "maxSequenceLength":
                tokens = int(value)
                continue
            number = int(value) if value.isdigit() else value
            changed = (
                {**changed, parents[0]: {**changed.get(parents[0], {}), name: number}}
                if parents
                else {**changed, name: number}
            )
        done = spec(**changed)
        assert not refusal(done, tokens, pool(gib)), f"{remedy} of: {message}"
        assert least_way(shape_for(done), done, tokens, int(gib * GIB)).needed <= gib * GIB, remedy


def test_refusal_ends_the_job_for_good() -> None:
    with pytest.raises(StageError) as refused:
        require_fits(LLAMA, spec(), 2048, pool(14))
    assert (refused.value.reason, refused.value.code) == (Reason.OUT_OF_MEMORY, ExitCode.BAD_INPUT)


def test_refusal_without_a_remedy_says_what_else_there_is() -> None:
    job = spec(method="QLoRA", training={"gradientCheckpointing": "Always"})
    assert refusal(job, 1, pool(3)).endswith(
        "Use a pool of larger GPUs (resources.pool), or a smaller model (model.uri)."
    )


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(Method), st.integers(1, 60_000), st.integers(4, 200), st.integers(1, 8),
    st.sampled_from(("Auto", "Always", "Never")), st.sampled_from(("Auto", "Never")),
)  # fmt: skip
def test_what_is_refused_is_also_estimated_not_to_fit(
    method: Method, longest: int, gib: int, gpus: int, checkpointing: str, sharding: str
) -> None:
    training = {"gradientCheckpointing": checkpointing, "sharding": sharding, "batchSize": 8}
    job = spec(method=method, training=training, resources={"gpus": gpus})
    if refusal(job, longest, pool(gib)):
        rows = replace(ROWS, longest=longest)
        assert chosen_way(shape_for(job), job, rows, gib * GIB).needed > gib * GIB


def test_micro_batch_is_halved_until_it_fits_and_activations_are_computed_twice_at_last() -> None:
    job, rows = spec(training={"batchTokens": 100_000}), replace(ROWS, steps=6, longest=1000)

    def chosen(gib: float) -> tuple[int, bool]:
        way = chosen_way(LLAMA, job, rows, int(gib * GIB))
        assert way.needed <= gib * GIB
        return way.batch.tokens, way.setting.checkpointing

    assert [chosen(gib) for gib in (141, 79, 45, 32, 24, 20)] == [
        (8192, False), (4096, False), (2048, False), (1024, False), (8192, True), (4096, True),
    ]  # fmt: skip


def test_micro_batch_is_no_larger_than_a_step() -> None:
    assert chosen_way(LLAMA, spec(), ROWS, None).batch.tokens == 1601, "8 rows of 200 tokens, and what is left over"
    assert chosen_way(LLAMA, spec(training={"microBatchSize": 2}), ROWS, None).batch.tokens == 900


def test_estimate_has_all_that_the_pool_lets_it_say() -> None:
    found = estimate(LLAMA, spec(), ROWS, L40S)
    assert found.gpu_memory_bytes == sum(part.size_bytes for part in found.parts)
    assert found.least_gpu_memory_bytes < found.gpu_memory_bytes < 45 * GIB
    assert found.tokens == 600_000
    assert (found.least_seconds or 0) < (found.seconds or 0) < (found.most_seconds or 0)
    assert found.price == f"{1.80 * (found.seconds or 0) / 3600:.2f}"


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (None, "No time is estimated: the pool's nodes do not say which GPU they have (label nvidia.com/gpu.product)."),
        (PoolFacts(gpu_product="Graphcore-2"), "No time is estimated: how fast a Graphcore-2 is, is not known here."),
    ],
)
def test_estimate_of_an_unknown_gpu_has_no_time_and_says_why(facts: PoolFacts | None, says: str) -> None:
    found = estimate(LLAMA, spec(), ROWS, facts)
    assert (found.seconds, found.price) == (None, None)
    assert found.basis.startswith(says)


def test_estimate_says_what_of_it_is_assumed() -> None:
    """Nothing was measured on a GPU yet."""
    assert (
        "No GPU was measured: it is assumed that training reaches 20% to 45% of"
        in estimate(LLAMA, spec(), ROWS, L40S).basis
    )
    for facts in (None, L40S):
        found = estimate(LLAMA, spec(), ROWS, facts)
        assert "compared with trainings on CPUs; what CUDA itself takes is assumed." in found.basis
        assert found.parts[-1].what == "CUDA itself (assumed)"
    sharded = spec(method="Full", resources={"gpus": 2}, training={"sharding": "Always"})
    assert (
        "what CUDA itself takes and how sharding divides it are assumed." in estimate(LLAMA, sharded, ROWS, L40S).basis
    )


def test_estimate_without_a_price_has_none() -> None:
    assert estimate(LLAMA, spec(), ROWS, L40S.model_copy(update={"price_per_gpu_hour": "0"})).price is None


def test_gpu_without_bfloat16_is_reckoned_in_float32() -> None:
    bfloat16, float32 = (
        estimate(LLAMA, spec(), ROWS, PoolFacts(gpu_product=name)) for name in ("NVIDIA-L4", "Tesla-T4")
    )
    assert float32.parts[0].size_bytes == pytest.approx(2 * bfloat16.parts[0].size_bytes, rel=0.02)
    assert "float32" in float32.basis


def test_evaluations_and_a_preferences_reference_take_time() -> None:
    def seconds(rows: RowFacts, **training: Any) -> int:
        return estimate(LLAMA, spec(training=training), rows, L40S).seconds or 0

    measured = replace(ROWS, validation_tokens=20_000)
    assert seconds(measured) > seconds(ROWS)
    assert seconds(measured, evaluateEverySteps=10) > seconds(measured)
    assert seconds(replace(ROWS, is_preference=True)) > 1.2 * seconds(ROWS)


def test_what_is_foreseen_is_decided_by_the_same_numbers_on_the_gpu() -> None:
    from sluice_trainer.train.trials.budget import MAX_TOKENS
    from sluice_trainer.train.weights.sharding import MAX_WEIGHTS_SHARE

    assert (MAX_TOKENS["cuda"], MAX_WEIGHTS_SHARE) == (GPU_MOST_TOKENS, SHARDED_BEYOND)
    assert CONTEXT_BYTES < GIB
