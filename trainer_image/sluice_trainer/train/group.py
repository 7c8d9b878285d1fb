"""The processes that train together, and what they do as one. Alone, all of it is nothing."""

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

MEETING = timedelta(minutes=10)
"""Until the last pod is there: a node may have to pull the image first, and the pods' names resolve only then."""
COLLECTIVE = timedelta(minutes=30)
"""For the slowest peer's evaluation or save. One that is gone is noticed by its connections, long before."""

_PORT_ENV = "SLUICE_LEADER_PORT"


@dataclass(frozen=True)
class Group:
    """This process among those that train together."""

    rank: Rank
    device: torch.device
    store: Store | None = None
    """Short texts for the others; None alone."""
    shares_model: bool = False
    """Each process has only a part of the model, and all use it together."""

    @property
    def leads(self) -> bool:
        """This is the process that reports, saves and has the result."""
        return self.rank.leads

    @property
    def shared_store(self) -> Store:
        """Where all processes find each other's words; alone there is none."""
        if self.store is None:
            raise TypeError("a process alone has nobody to talk to")
        return self.store

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """One process of a pod after the other: what each needs the pod's memory for, but not for long."""
        pod, gpu = self.rank.pod, self.rank.gpu
        if self.store is not None and gpu > 0:
            with peers():
                self.store.wait([f"turn/{pod}/{gpu - 1}"], COLLECTIVE)
        yield
        if self.store is not None:
            with peers():
                self.store.set(f"turn/{pod}/{gpu}", "")

    def turns(self, count: int) -> Iterator[tuple[int, bool]]:
        """Which of so many tasks are this process's, one after the other around the group, and whether each counts.

        Who has one task fewer than others does the last one too, for nothing, if they use the model together.
        """
        for first in range(0, count, self.rank.size):
            turn = first + self.rank.number
            if turn < count or self.shares_model:
                yield min(turn, count - 1), turn < count

    def sum_(self, tensor: Tensor) -> None:
        """Replace everybody's tensor by the sum over all."""
        if self.rank.size > 1:
            with peers():
                dist.all_reduce(tensor)

    def meet(self) -> None:
        """Wait until everybody is here."""
        self.agrees(True)

    def agrees(self, yes: bool) -> bool:
        """Whether everybody says yes."""
        no = torch.tensor(float(not yes), device=self.device)
        self.sum_(no)
        return no.item() == 0

    def take_leaders_(self, tensors: Sequence[Tensor]) -> None:
        """Replace everybody's tensors by the leader's."""
        if self.rank.size > 1:
            with peers():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def leaders_word(self, subject: str, word: str) -> str:
        """What the leader says on a subject, once."""
        if self.store is None:
            return word
        with peers():
            if self.leads:
                self.store.set(subject, word)
            return str(self.store.get(subject), "utf-8")


@contextmanager
def joined(rank: Rank, reporter: Reporter, stop: StopSignal) -> Iterator[Group]:
    """Wait for all processes of the group, and be one of them while the block runs.

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
    store = _met(rank, leader, device.type)
    several_pods = rank.pods > 1 and rank.gpu == 0
    with lifeline.held(rank, leader, store, stop) if several_pods else nullcontext():
        with peers():
            dist.init_process_group(
                "nccl" if cuda else "gloo",
                store=PrefixStore("group", store),
                rank=rank.number,
                world_size=rank.size,
                timeout=COLLECTIVE,
                device_id=device if cuda else None,
            )
        logs.info("joined", rank=rank.number, size=rank.size)
        with _used_together():
            yield Group(rank, device, store)
        dist.destroy_process_group()


def _keep_to_share(device: torch.device) -> None:
    """Use no more of a shared GPU's memory than the job asks for: what is beyond is out of memory here, not beside."""
    percent = os.environ.get(SHARE_ENV)
    if percent:
        torch.cuda.set_per_process_memory_fraction(int(percent) / 100, device)
        logs.info("shares the GPU", percent=int(percent))


def _met(rank: Rank, leader: str, kind: str) -> Store:
    """The leader's store, once everybody is there. Until the leader has a name and a port, torch tries again."""
    port = int(os.environ.get(_PORT_ENV, LEADER_PORT))
    here = [f"here/{number}" for number in range(rank.size)]
    store: Store | None = None
    try:
        store = TCPStore(leader, port, None, rank.leads, MEETING, wait_for_workers=False)
        store.set(here[rank.number], kind)
        store.wait(here, MEETING)
        kinds = [str(store.get(key), "utf-8") for key in here]
    except dist.DistError as error:
        if store is not None and isinstance(error, dist.DistNetworkError):
            raise PeerLost("The pod with index 0") from error
        raise StageError(
            Reason.POD_NOT_STARTED,
            f"Not all {rank.size} processes of the group met at {leader}:{port} within {MEETING}: {error}. "
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
def _used_together() -> Iterator[None]:
    """Around everything: a model in parts talks to the peers wherever it is used. Its other errors are its own."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        with peers():
            raise


@contextmanager
def peers() -> Iterator[None]:
    """Around what is done together, and nothing else: when it fails, a peer is gone, or can't be reached."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch's DistError, and gloo's "Connection closed by peer", which has no class
        logs.warning("a collective failed", error=str(error))
        raise PeerLost from error
