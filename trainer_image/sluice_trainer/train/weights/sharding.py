"""A model of which each process of the group keeps only a part: torch's FSDP2.

The weights of a layer are put together from all processes before it is used, and let go after it. So every process has
to use the model as often as the others (Group.own_tasks), whatever it has to do with it itself.
"""

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.training import Method, Sharding
from sluice_trainer import logs
from sluice_trainer.base_model import BaseModel
from sluice_trainer.train.group import Group
from sluice_trainer.train.weights.model import DTYPES, Model, bare, decoder_layers, trainable, without_weights

TRAINED_BYTES = 16
"""Of a weight that is trained, each in float32: itself, its gradient, Adam's two moments."""
MOST = 2 / 3
"""Of a GPU's memory that all of them may take whole; the rest is for what a step needs."""


def is_wanted(spec: FineTuneJobSpec, base: BaseModel, group: Group) -> bool:
    """Whether each process is to keep only a part: all processes decide alike."""
    if group.rank.size == 1 or spec.method is Method.QLORA or spec.training.sharding is Sharding.NEVER:
        return False
    if spec.training.sharding is Sharding.ALWAYS:
        return True
    if group.device.type != "cuda":  # all processes of a pod share its memory
        return False
    weights = sum(weight.numel() for weight in without_weights(base).parameters())
    needed = weights * (TRAINED_BYTES if spec.method is Method.FULL else DTYPES[spec.training.dtype].itemsize)
    return not group.all_agree(needed <= MOST * torch.cuda.get_device_properties(group.device).total_memory)


def mesh_of(group: Group) -> DeviceMesh:
    """All processes of the group in a row. They make it together."""
    return init_device_mesh(group.device.type, (group.rank.size,))


def shard(model: Model, group: Group, mesh: DeviceMesh, spec: FineTuneJobSpec) -> None:
    """Leave this process its part of each weight, on its device. An adapter is small and stays whole.

    Gradients are summed, not averaged, and each micro-batch's at once: whole ones are never in memory. Weights that are
    kept more precisely than they are computed with are rounded as they are put together.
    """
    adapter = set(trainable(model).values()) if isinstance(model, PeftModel) else set()
    for weight in adapter:
        weight.data = weight.data.to(group.device)
    rounded = DTYPES[spec.training.dtype] if spec.method is Method.FULL else None
    policy = MixedPrecisionPolicy(param_dtype=rounded, reduce_dtype=torch.float32 if rounded else None)
    for part in (*decoder_layers(model), bare(model)):
        fully_shard(part, mesh=mesh, ignored_params=adapter, mp_policy=policy)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo can't multiply while it sums
    bare(model).set_reduce_scatter_unused_params(True)  # what one process did not use another one may have
    logs.info("sharded", parts=group.rank.size, trained="whole" if adapter else "in parts")


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: all of it, or the rows that are its part. The same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_part(weight: nn.Parameter) -> bool:
    """Whether other processes have the rest of it."""
    return isinstance(weight, DTensor)
