"""What training will take: memory, time and price."""

from typing import Any

from sluice_api import data_report
from sluice_api.data_report import MemoryUse
from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.stages import PoolFacts
from sluice_trainer.data.estimate.memory import Memory
from sluice_trainer.data.estimate.shape import ModelShape
from sluice_trainer.data.estimate.speed import LAUNCH_SECONDS, UTILISATION, Device, Work, device_of, seconds_range
from sluice_trainer.data.estimate.ways import CONTEXT_BYTES, RowFacts, Way, as_computed, chosen_way, least_way


def estimate(shape: ModelShape, spec: FineTuneJobSpec, rows: RowFacts, pool: PoolFacts | None) -> data_report.Estimate:
    """Estimate memory, time and price of a training.

    Args:
        shape: Of the model with its adapter: shape.shape_of.
        spec: The job.
        rows: What Prepare made.
        pool: What is known about the pool's GPUs; None: nothing, as on a machine of one's own.
    """
    pool = pool or PoolFacts()
    available = pool.gpu_memory_bytes
    device = device_of(pool.gpu_product)
    spec = as_computed(spec, device)
    way = chosen_way(shape, spec, rows, available)
    found: dict[str, Any] = {}
    if device is not None:
        found = _time_and_price(shape, spec, rows, way, device, pool)
    return data_report.Estimate(
        gpus=spec.resources.all_gpus,
        gpu_product=pool.gpu_product,
        gpu_memory_bytes=way.needed,
        least_gpu_memory_bytes=least_way(shape, spec, rows.longest, available).needed,
        available_gpu_memory_bytes=available,
        parts=_parts(way.memory),
        micro_batch_tokens=way.batch.tokens,
        gradient_checkpointing=way.setting.checkpointing,
        sharded=way.setting.sharded,
        steps=rows.steps,
        tokens=round(rows.tokens * rows.epochs),
        basis=_basis(shape, spec, pool, device, sharded=way.setting.sharded),
        **found,
    )


def _parts(memory: Memory) -> tuple[MemoryUse, ...]:
    named = (
        ("weights", memory.weights),
        ("optimizer's moments", memory.moments),
        ("gradients", memory.gradients),
        ("activations", memory.activations),
        ("loss or one layer's gradients", memory.moment),
        ("CUDA itself (assumed)", CONTEXT_BYTES),
    )
    return tuple(MemoryUse(what=what, size_bytes=size) for what, size in named if size)


def _time_and_price(
    shape: ModelShape, spec: FineTuneJobSpec, rows: RowFacts, way: Way, device: Device, pool: PoolFacts
) -> dict[str, Any]:
    """Seconds and price of an estimate, as ranges and their middles."""
    tokens = round(rows.tokens * rows.epochs)
    every = spec.training.evaluate_every_steps
    measured = 2 + (rows.steps // every if every else 0)  # before the first step and after the last one
    processes = spec.resources.all_gpus
    in_step = tokens / max(1, rows.steps) / processes
    work = Work(
        tokens=tokens,
        loss_tokens=round(rows.loss_tokens * rows.epochs),
        length=rows.tokens / max(1, rows.rows),
        read_tokens=measured * rows.validation_tokens + (tokens if rows.is_preference else 0),
        micro_batches=round(rows.steps * processes * max(1.0, in_step / way.batch.tokens)),
    )
    least, most = seconds_range(shape, way.setting, work, device, processes)
    middle = (least * most) ** 0.5
    hourly = float(pool.price_per_gpu_hour) * processes
    found: dict[str, Any] = {"least_seconds": round(least), "seconds": round(middle), "most_seconds": round(most)}
    if hourly > 0:
        for name, seconds in (("least_price", least), ("price", middle), ("most_price", most)):
            found[name] = f"{hourly * seconds / 3600:.2f}"
    return found


def _basis(shape: ModelShape, spec: FineTuneJobSpec, pool: PoolFacts, device: Device | None, *, sharded: bool) -> str:
    """What the estimate takes for granted."""
    said = []
    if device is not None:
        least, most = UTILISATION
        said.append(
            "Time is that of training alone: not waiting, starting, saving and exporting. No GPU was measured: it is "
            f"assumed that training reaches {least:.0%} to {most:.0%} of what the GPU's data sheet says, and that a "
            f"layer takes at least {LAUNCH_SECONDS * 1000:.0f} ms."
        )
    elif pool.gpu_product:
        said.append(f"No time is estimated: how fast a {pool.gpu_product} is, is not known here.")
    else:
        said.append(
            "No time is estimated: the pool's nodes do not say which GPU they have (label nvidia.com/gpu.product)."
        )
    assumed = "what CUDA itself takes and how sharding divides it are" if sharded else "what CUDA itself takes is"
    said.append(f"Memory is a formula that was compared with trainings on CPUs; {assumed} assumed.")
    if pool.gpu_memory_bytes is None:
        said.append("The memory of the pool's GPUs is not known, so nothing was compared with it.")
    if device is not None and not device.bfloat16 and spec.training.dtype == "float32":
        said.append("The GPU has no bfloat16, so training computes in float32.")
    if shape.has_other_mixers:
        said.append("Some of the model's layers are no attention; they can take more memory than is counted here.")
    return " ".join(said)
