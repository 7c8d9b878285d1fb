"""The memory that a micro-batch takes on a CPU, and the memory that is free.

On a CPU the kernel kills a process that takes too much, so a micro-batch can't just be tried. But a model's memory is a
quadratic function of the tokens, whatever its shape: three small micro-batches tell what a large one will take.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sluice_trainer.train.weights.sharding import local_shard

MEASURED_TOKENS = (16, 32, 64)
"""Tokens of the micro-batches that are measured."""
UNCOUNTED_FACTOR = 1.6
"""Bytes that the process grows by for each byte of tensors, for example kernels' buffers. Measured: 1.1 to 1.6."""
HEAP_HOLES_BYTES = 128 << 20
"""Freed blocks that the heap keeps: glibc returns only those at its top or above 32 MiB."""
COPY_BYTES_PER_WEIGHT = 12
"""Bytes of a checkpoint's copy of a trained weight and its two moments."""


@dataclass(frozen=True)
class Cost:
    """Bytes that forward and backward of one micro-batch take beside the weights, at their peak."""

    fixed: float
    token: float
    pair: float
    """For each pair of tokens: masks, and attention's weights where they are kept."""

    def of(self, tokens: int) -> float:
        """The bytes of a micro-batch with so many tokens."""
        return HEAP_HOLES_BYTES + UNCOUNTED_FACTOR * (self.fixed + self.token * tokens + self.pair * tokens**2)


def fit_cost(peaks: Mapping[int, int]) -> Cost:
    """Fit the quadratic function through three measured peaks, by tokens."""
    (n0, p0), (n1, p1), (n2, p2) = sorted(peaks.items())
    first, second = (p1 - p0) / (n1 - n0), (p2 - p1) / (n2 - n1)
    pair = max(0.0, (second - first) / (n2 - n0))
    token = first - pair * (n0 + n1)
    return Cost(p0 - token * n0 - pair * n0**2, token, pair)


def upper_bound(tokens: int, peak: int) -> Cost:
    """A bound for micro-batches of more tokens than these: as if all of the peak grew with the square of the tokens."""
    return Cost(0, 0, peak / tokens**2)


def peak_bytes(model: nn.Module, work: Callable[[], None]) -> int:
    """Measure the peak memory of tensors during some work, without the model's weights.

    On a CPU, weights that FSDP has gathered count until their tensors are gone, although their memory is freed before:
    the result may be too large by one model.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveTensorBytes(model) as living:
        work()
    peak: int = living.peak  # torch leaves its mode untyped
    return peak


def free_bytes(
    model: nn.Module,
    processes: int,
    cgroup: Path = Path("/sys/fs/cgroup"),
    meminfo: Path = Path("/proc/meminfo"),
) -> int:
    """Bytes of host memory left for one of so many processes of this pod, less a checkpoint's copy."""
    words = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(words["MemAvailable"].split()[0]) * 1024
    limit = cgroup / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - _unreclaimable_bytes(cgroup))
    trained = sum(local_shard(weight).numel() for weight in model.parameters() if weight.requires_grad)
    return free // processes - COPY_BYTES_PER_WEIGHT * trained


def free_gpu_bytes(device: torch.device) -> int:
    """Bytes left for this process on its GPU, with those that torch has reserved and not allocated."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _unreclaimable_bytes(cgroup: Path) -> int:
    """Bytes that the kernel can't reclaim: all but the page cache; its mapped pages (weights may be) count."""
    stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    cache = int(stat["active_file"]) + int(stat["inactive_file"]) - int(stat["file_mapped"])
    return int((cgroup / "memory.current").read_text()) - max(0, cache)


class _LiveTensorBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, until each is freed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.peak: int = 0
        self._bytes: int = 0
        held = (local_shard(tensor) for tensor in (*model.parameters(), *model.buffers()))
        self._known = {tensor.untyped_storage()._cdata for tensor in held}

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(local_shard(tensor).untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:  # a view
            return
        self._known.add(storage._cdata)
        self._bytes += storage.nbytes()
        self.peak = max(self.peak, self._bytes)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._bytes -= size
