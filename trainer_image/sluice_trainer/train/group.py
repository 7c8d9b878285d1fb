"""The processes that train together, and their collectives. In a process that is alone these do nothing."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore  # torch.distributed has it for its users, but not for mypy
from torch.distributed.distributed_c10d import PrefixStore, Store

from sluice_api.pods import LEADER_ENV, LEADER_PORT, SHARE_ENV
from sluice_api.reasons import Reason
from sluice_api.reports import Activity
from sluice_api.stages import ExitCode
from sluice_trainer import lifeline, logs
from sluice_trainer.errors import PeerLost, StageError
from sluice_trainer.ranks import Rank
from sluice_trainer.report import Reporter
from sluice_trainer.signals import StopSignal

JOIN_TIMEOUT = timedelta(minutes=10)
"""Until the last pod is there: a node may have to pull the image first, and the pods' names resolve only then."""
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""For the slowest peer's evaluation or save. A peer that is gone is noticed by its connections, long before."""

_PORT_ENV = "SLUICE_LEADER_PORT"


@dataclass(frozen=True)
class Group:
    """This process among those that train together."""

    rank: Rank
    device: torch.device
    store: Store | None = None
    """Key-value store of the group, for short texts; None if this process is alone."""
    shares_model: bool = False
    """Each process has only a shard of the model, so that all have to use it together."""

    @property
    def leads(self) -> bool:
        """Whether this process is the leader: it reports, saves and has the result."""
        return self.rank.leads

    @property
    def shared_store(self) -> Store:
        """The group's store.

        Raises:
            TypeError: this process is alone.
        """
        if self.store is None:
            raise TypeError("a process alone has no store")
        return self.store

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Run the block in one process of the pod after the other. For what takes much of the pod's memory, briefly."""
        pod, gpu = self.rank.pod, self.rank.gpu
        if self.store is not None and gpu > 0:
            with peers():
                self.store.wait([f"turn/{pod}/{gpu - 1}"], COLLECTIVE_TIMEOUT)
        yield
        if self.store is not None:
            with peers():
                self.store.set(f"turn/{pod}/{gpu}", "")

    def own_tasks(self, count: int) -> Iterator[tuple[int, bool]]:
        """Yield the tasks, of `count`, that this process does, and whether each counts. Tasks go round robin to ranks.

        Where all processes use a sharded model together, one with a task less than others repeats the last task, which
        does not count.
        """
        for first in range(0, count, self.rank.size):
            task = first + self.rank.number
            if task < count or self.shares_model:
                yield min(task, count - 1), task < count

    def all_reduce_sum_(self, tensor: Tensor) -> None:
        """Replace the tensor of every process by the sum over all processes."""
        if self.rank.size > 1:
            with peers():
                dist.all_reduce(tensor)

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.all_agree(True)

    def all_agree(self, yes: bool) -> bool:
        """Whether every process says yes."""
        no = torch.tensor(float(not yes), device=self.device)
        self.all_reduce_sum_(no)
        return no.item() == 0

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Replace the tensors of every process by the leader's."""
        if self.rank.size > 1:
            with peers():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def broadcast_text(self, key: str, text: str) -> str:
        """Return the leader's text in every process. A key can be used once."""
        if self.store is None:
            return text
        with peers():
            if self.leads:
                self.store.set(key, text)
            return str(self.store.get(key), "utf-8")


@contextmanager
def joined(rank: Rank, reporter: Reporter, stop: StopSignal) -> Iterator[Group]:
    """Wait for all processes of the group, and belong to it while the block runs.

    Raises:
        StageError: PodNotStarted, when not all came.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank.gpu) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        _keep_to_share(device)
    if rank.size == 1:
        yield Group(rank, device)
        return
    # A failure of nccl then comes as an exception here; otherwise one of its threads aborts the process, unsaved.
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
    leader = os.environ[LEADER_ENV] if rank.pods > 1 else "127.0.0.1"
    reporter.update(activity=Activity.WAITING_FOR_PODS)
    store = _joined_store(rank, leader, device.type)
    several_pods = rank.pods > 1 and rank.gpu == 0
    with lifeline.watching_other_pods(rank, leader, store, stop) if several_pods else nullcontext():
        with peers():
            dist.init_process_group(
                "nccl" if cuda else "gloo",
                store=PrefixStore("group", store),
                rank=rank.number,
                world_size=rank.size,
                timeout=COLLECTIVE_TIMEOUT,
                device_id=device if cuda else None,
            )
        logs.info("joined", rank=rank.number, size=rank.size)
        with _peers_of_sharded_model():
            yield Group(rank, device, store)
        dist.destroy_process_group()


def _keep_to_share(device: torch.device) -> None:
    """Limit this process to its part of a shared GPU's memory, so that no other process runs out of it."""
    percent = os.environ.get(SHARE_ENV)
    if percent:
        torch.cuda.set_per_process_memory_fraction(int(percent) / 100, device)
        logs.info("shares the GPU", percent=int(percent))


def _joined_store(rank: Rank, leader: str, kind: str) -> Store:
    """Connect to the leader's store and wait for all processes. torch tries again until the leader's name resolves."""
    port = int(os.environ.get(_PORT_ENV, LEADER_PORT))
    here = [f"here/{number}" for number in range(rank.size)]
    store: Store | None = None
    try:
        store = TCPStore(leader, port, None, rank.leads, JOIN_TIMEOUT, wait_for_workers=False)
        store.set(here[rank.number], kind)
        store.wait(here, JOIN_TIMEOUT)
        kinds = [str(store.get(key), "utf-8") for key in here]
    except dist.DistError as error:
        if store is not None and isinstance(error, dist.DistNetworkError):
            raise PeerLost("The pod with index 0") from error
        raise StageError(
            Reason.POD_NOT_STARTED,
            f"Not all {rank.size} processes of the group met at {leader}:{port} within {JOIN_TIMEOUT}: {error}. "
            "See the events of the training pods.",
            ExitCode.INTERNAL,
        ) from error
    if len(set(kinds)) > 1:
        message = (
            f"Some processes of the group see no GPU, by rank: {', '.join(kinds)}. Look at the nodes' GPU drivers."
        )
        raise StageError(Reason.TRAINER_FAILED, message, ExitCode.INTERNAL)
    return store


@contextmanager
def _peers_of_sharded_model() -> Iterator[None]:
    """As peers(), around all use of a sharded model, which calls collectives itself. Other errors pass unchanged."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        with peers():
            raise


@contextmanager
def peers() -> Iterator[None]:
    """Turn the failure of a collective into PeerLost. The block must do nothing else."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch's DistError, and gloo's "Connection closed by peer", which has no class
        logs.warning("a collective failed", error=str(error))
        raise PeerLost from error
