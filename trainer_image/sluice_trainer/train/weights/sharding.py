"""A sharded model: each process of the group keeps only some rows of each weight (torch's FSDP2).

The weights of a layer are gathered from all processes before it is used, and freed after it. So every process has to
use the model as often as the others (Group.own_tasks), even if it has fewer rows.
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

TRAINED_BYTES_PER_WEIGHT = 16
"""Bytes of a trained weight: itself, its gradient and Adam's two moments, each in float32."""
MAX_WEIGHTS_SHARE = 2 / 3
"""Part of a GPU's memory that an unsharded model may take; activations need the rest."""


def is_wanted(spec: FineTuneJobSpec, base: BaseModel, group: Group) -> bool:
    """Whether the model is to be sharded; the same answer in all processes."""
    if group.rank.size == 1 or spec.method is Method.QLORA or spec.training.sharding is Sharding.NEVER:
        return False
    if spec.training.sharding is Sharding.ALWAYS:
        return True
    if group.device.type != "cuda":  # all processes of a pod share its memory
        return False
    weights = sum(weight.numel() for weight in without_weights(base).parameters())
    needed = weights * (
        TRAINED_BYTES_PER_WEIGHT if spec.method is Method.FULL else DTYPES[spec.training.dtype].itemsize
    )
    return not group.all_agree(
        needed <= MAX_WEIGHTS_SHARE * torch.cuda.get_device_properties(group.device).total_memory
    )


def mesh_of(group: Group) -> DeviceMesh:
    """Make a one-dimensional mesh of all processes, which all call this."""
    return init_device_mesh(group.device.type, (group.rank.size,))


def shard(model: Model, group: Group, mesh: DeviceMesh, spec: FineTuneJobSpec) -> None:
    """Shard the model: this process keeps its rows of each weight, on its device. An adapter is small and stays whole.

    Gradients are summed, not averaged, and reduced after each micro-batch: whole ones are never in memory. With Full in
    bfloat16 the float32 weights are rounded when they are gathered.
    """
    adapter = set(trainable(model).values()) if isinstance(model, PeftModel) else set()
    for weight in adapter:
        weight.data = weight.data.to(group.device)
    rounded = DTYPES[spec.training.dtype] if spec.method is Method.FULL else None
    policy = MixedPrecisionPolicy(param_dtype=rounded, reduce_dtype=torch.float32 if rounded else None)
    for module in (*decoder_layers(model), bare(model)):
        fully_shard(module, mesh=mesh, ignored_params=adapter, mp_policy=policy)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo can't multiply while it sums
    bare(model).set_reduce_scatter_unused_params(True)  # another process may have used them
    logs.info("sharded", shards=group.rank.size, trained="whole" if adapter else "sharded")


def local_shard(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, or the whole tensor if it is not sharded; in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(weight: nn.Parameter) -> bool:
    """Whether other processes have the rest of a weight."""
    return isinstance(weight, DTensor)
