"""What a micro-batch costs in memory on a CPU, and how much there is.

On a CPU an overrun is a kill, not an exception, so that nothing can be tried out. But what a model takes is a parabola
in the tokens, whatever its shape: three small micro-batches tell what a large one will take.
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

from sluice_trainer.train.weights.sharding import local

MEASURED = (16, 32, 64)
"""Tokens of the micro-batches that are measured."""
UNSEEN = 1.6
"""What the process grows by for each byte of tensors, such as kernels' own buffers. Measured: 1.1 to 1.6."""
HOLES = 128 << 20
"""What the heap keeps of blocks that are free again: glibc gives back only what is at its top or above 32 MiB."""
COPY_BYTES = 12
"""A checkpoint's copy of each trained weight and its two moments, which are in memory already."""


@dataclass(frozen=True)
class Cost:
    """Bytes that forward and backward of one micro-batch take beside the weights, at their peak."""

    fixed: float
    token: float
    pair: float
    """For each pair of tokens: masks, and attention's weights where they are kept."""

    def of(self, tokens: int) -> float:
        """Of a micro-batch of so many tokens."""
        return HOLES + UNSEEN * (self.fixed + self.token * tokens + self.pair * tokens**2)


def cost_through(peaks: Mapping[int, int]) -> Cost:
    """The parabola through three measured peaks, by tokens."""
    (n0, p0), (n1, p1), (n2, p2) = sorted(peaks.items())
    first, second = (p1 - p0) / (n1 - n0), (p2 - p1) / (n2 - n1)
    pair = max(0.0, (second - first) / (n2 - n0))
    token = first - pair * (n0 + n1)
    return Cost(p0 - token * n0 - pair * n0**2, token, pair)


def most_of(tokens: int, peak: int) -> Cost:
    """No micro-batch of more tokens than these takes more than this: as if all of the peak grew with their square."""
    return Cost(0, 0, peak / tokens**2)


def peak_bytes(model: nn.Module, work: Callable[[], None]) -> int:
    """The most that tensors take at once while some work is done, beside the model's weights.

    On a CPU what FSDP puts together counts until its tensors are gone, though it lets go of their memory before: up to
    one model too much.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _Living(model) as living:
        work()
    peak: int = living.peak  # torch leaves its mode untyped
    return peak


def free_bytes(
    model: nn.Module,
    processes: int,
    cgroup: Path = Path("/sys/fs/cgroup"),
    meminfo: Path = Path("/proc/meminfo"),
) -> int:
    """What is left for one of so many processes of this pod, a checkpoint's copy set aside."""
    words = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(words["MemAvailable"].split()[0]) * 1024
    limit = cgroup / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - _held(cgroup))
    trained = sum(local(weight).numel() for weight in model.parameters() if weight.requires_grad)
    return free // processes - COPY_BYTES * trained


def free_gpu_bytes(device: torch.device) -> int:
    """What is left for this process on its GPU, with what torch keeps of it for later."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _held(cgroup: Path) -> int:
    """What the kernel can't take back: all but the page cache, of which what is mapped (weights may be) counts."""
    stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    cache = int(stat["active_file"]) + int(stat["inactive_file"]) - int(stat["file_mapped"])
    return int((cgroup / "memory.current").read_text()) - max(0, cache)


class _Living(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, until the last reference to each is gone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.peak: int = 0
        self._bytes: int = 0
        held = (local(tensor) for tensor in (*model.parameters(), *model.buffers()))
        self._known = {tensor.untyped_storage()._cdata for tensor in held}

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(local(tensor).untyped_storage())
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
