"""Whether a job fits the GPUs of its pool at all, and what would make it fit."""

from collections.abc import Callable, Iterator

from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.quantity import readable
from sluice_api.reasons import Reason
from sluice_api.stages import PoolFacts
from sluice_api.training import GradientCheckpointing, Method, Sharding
from sluice_trainer.data.estimate.memory import Memory
from sluice_trainer.data.estimate.shape import ModelShape
from sluice_trainer.data.estimate.speed import device_of
from sluice_trainer.data.estimate.ways import as_computed, least_way, with_training
from sluice_trainer.errors import StageError

CERTAIN = 0.8
"""Part of the estimated activations that a job surely needs. The formula has been 9 % above what was measured, never
more (docs/benchmarks/estimate.md). Weights, moments and gradients are exact."""


def require_fits(shape: ModelShape, spec: FineTuneJobSpec, longest: int, pool: PoolFacts | None) -> None:
    """Refuse a job that no GPU of the pool can hold, with what would make it fit. Does nothing if that is not certain.

    Args:
        shape: Of the model with its adapter.
        spec: The job.
        longest: Tokens of the longest row; 1 before rows are read, to find out before that takes an hour.
        pool: What is known about the pool's GPUs.

    Raises:
        StageError: OutOfMemory.
    """
    available = pool.gpu_memory_bytes if pool else None
    if pool is None or available is None:
        return
    spec = as_computed(spec, device_of(pool.gpu_product))
    way = least_way(shape, spec, longest, available)
    if _certain_bytes(way.memory) <= available:
        return
    name = f" ({pool.gpu_product})" if pool.gpu_product else ""
    which = "with all its weights sharded, " if way.setting.sharded else ""
    does = "" if longest <= 1 else f", {which}one row of {longest:,} tokens at a time"
    tried = list(_remedies(shape, spec, longest, available))
    remedy = f"What would fit: {'; '.join(tried)}." if tried else _nothing_fits(spec)
    raise StageError(
        Reason.OUT_OF_MEMORY,
        f"Training needs about {readable('memory', way.needed)} of memory on each GPU{does}, and the largest GPU of "
        f"pool {spec.resources.pool} has {readable('memory', available)}{name}. {remedy}",
    )


def _certain_bytes(memory: Memory) -> float:
    """What a job surely needs."""
    exact = memory.weights + memory.moments
    return exact + max(memory.gradients, CERTAIN * (memory.activations + memory.moment))


def _remedies(shape: ModelShape, spec: FineTuneJobSpec, longest: int, available: int) -> Iterator[str]:
    """What would make the job fit, each tried by the formula itself."""

    def needed(changed: FineTuneJobSpec, tokens: int = longest) -> int:
        """Bytes that the changed job needs, if the GPU has them; 0 otherwise."""
        bytes_ = least_way(_adapted(shape, changed), changed, tokens, available).needed
        return bytes_ if bytes_ <= available else 0

    def tried(changes: Iterator[tuple[str, FineTuneJobSpec]]) -> Iterator[str]:
        """The first of some changes that fits."""
        for what, changed in changes:
            if found := needed(changed):
                yield f"{what} (about {readable('memory', found)})"
                return

    yield from tried(_without_keeping(spec))
    yield from tried(_smaller_methods(spec))
    yield from tried(_more_gpus(spec))
    if longest > 1 and (tokens := _longest_that_fits(longest, lambda length: bool(needed(spec, length)))):
        yield f"training.maxSequenceLength: {tokens} (about {readable('memory', needed(spec, tokens))})"


def _adapted(shape: ModelShape, spec: FineTuneJobSpec) -> ModelShape:
    """The shape with the adapter that the job would have."""
    return shape if shape.has_adapter or spec.method is Method.FULL else shape.adapted(spec.lora.rank)


def _without_keeping(spec: FineTuneJobSpec) -> Iterator[tuple[str, FineTuneJobSpec]]:
    """The job with activations computed twice, if it forbids that."""
    if spec.training.gradient_checkpointing is GradientCheckpointing.NEVER:
        changed = with_training(spec, gradient_checkpointing=GradientCheckpointing.AUTO)
        yield "training.gradientCheckpointing: Auto", changed


def _smaller_methods(spec: FineTuneJobSpec) -> Iterator[tuple[str, FineTuneJobSpec]]:
    """The job by the methods that need less memory for weights."""
    if spec.method is Method.FULL:
        yield "method: LoRA", spec.model_copy(update={"method": Method.LORA})
    if spec.method is not Method.QLORA:
        also = " with training.sharding: Auto" if spec.training.sharding is Sharding.ALWAYS else ""
        changed = with_training(spec, sharding=Sharding.AUTO) if also else spec
        yield f"method: QLoRA{also}", changed.model_copy(update={"method": Method.QLORA})


def _more_gpus(spec: FineTuneJobSpec) -> Iterator[tuple[str, FineTuneJobSpec]]:
    """The job on more GPUs that share its weights; the fewest first, and only as long as each has a row of a step."""
    if spec.method is Method.QLORA:
        return
    never = spec.training.sharding is Sharding.NEVER
    also = " with training.sharding: Auto" if never else ""
    gpus = 2 * spec.resources.gpus
    if never and spec.resources.all_gpus > 1:
        yield "training.sharding: Auto", with_training(spec, sharding=Sharding.AUTO)
    while gpus <= 64:
        more = spec.resources.model_copy(update={"gpus": gpus})
        has_rows = spec.training.batch_tokens or spec.training.batch_size >= more.all_gpus
        rows = "" if has_rows else f" and training.batchSize: {more.all_gpus}"
        shared = with_training(spec, sharding=Sharding.AUTO) if never else spec
        yield f"resources.gpus: {gpus}{also}{rows}", shared.model_copy(update={"resources": more})
        gpus *= 2


def _longest_that_fits(longest: int, fits: Callable[[int], bool]) -> int:
    """The largest multiple of 64 below the longest row that fits, at least 128; 0 if there is none."""
    lowest, beyond = 1, -(-longest // 64)  # in units of 64 tokens; the first is below all that is tried
    while beyond - lowest > 1:
        middle = (lowest + beyond) // 2
        lowest, beyond = (middle, beyond) if fits(middle * 64) else (lowest, middle)
    return lowest * 64 if lowest > 1 else 0


def _nothing_fits(spec: FineTuneJobSpec) -> str:
    lora = "method: LoRA or QLoRA trains far fewer weights; or use " if spec.method is Method.FULL else "Use "
    return f"{lora}a pool of larger GPUs (resources.pool), or a smaller model (model.uri)."
