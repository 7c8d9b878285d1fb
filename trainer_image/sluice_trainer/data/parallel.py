"""Makes tasks on all cores, with the same result as on one: what is made is taken in the order of the tasks."""

import ctypes
import importlib.util
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sluice_api.data_steps import Step
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_api.training import OverlongRows
from sluice_trainer.base_model import BaseModel
from sluice_trainer.data.make import MadeBatch, RowMaker, Task
from sluice_trainer.errors import MORE_MEMORY, StageError
from sluice_trainer.local_ranks import MEMORY_EVENTS, kills_for_memory

T = TypeVar("T")

WORTH_BYTES = 64 * 1024 * 1024
"""Rows of fewer bytes, unpacked, are made in this process: others would take longer to start."""
_MOST = 8
_OWN_BYTES, _BYTES_OF_EACH = 2**30, 256 * 2**20
"""What this process takes itself, and each other: 120 MiB were seen, and batches are on their way to it."""
_WAITING_FOR_EACH = 4
"""Tasks that wait for each process, at most: they are what is in memory."""


@dataclass(frozen=True)
class MakerSettings:
    """What a process needs to make rows."""

    base: BaseModel
    template: str | None
    """The chat template, instead of the model's own."""
    longest: int
    """Tokens of a row at most."""
    overlong: OverlongRows
    steps: tuple[Step, ...] = ()
    """dataset.steps."""
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The words of each file that a filter's wordsFrom names, by its address."""

    def maker(self) -> RowMaker:
        """Load the tokenizer.

        Raises:
            StageError: ModelInvalid: it can't be read.
        """
        from sluice_trainer.data.steps.make import row_steps
        from sluice_trainer.data.tokenise import Tokeniser

        tokeniser = Tokeniser(self.base, self.longest, self.overlong, self.template)
        return RowMaker(tokeniser, row_steps(self.steps, tokeniser.offsets, self.words))


def make_all(
    tasks: Iterator[tuple[T, Task]], maker: RowMaker, processes: int, settings: MakerSettings
) -> Generator[tuple[T, Task, MadeBatch]]:
    """Make tasks; each comes with what it was given with.

    Args:
        tasks: In order.
        maker: This process's own.
        processes: How many make rows; with one it is this process.
        settings: What other processes make a maker from.

    Raises:
        StageError: a task can't be read, after all before it were made; or a process was killed.
    """
    if processes == 1:
        for label, task in tasks:
            yield label, task, maker.make(task)
        return
    context = multiprocessing.get_context("spawn")  # a fork would take threads' locks along
    waiting: deque[tuple[T, Task, Future[MadeBatch]]] = deque()
    with ProcessPoolExecutor(processes, context, _begin, (settings,)) as pool:
        try:
            while (read := _next(tasks)) is not None and not isinstance(read, StageError):
                label, task = read
                waiting.append((label, task, pool.submit(_make, task)))
                if len(waiting) >= _WAITING_FOR_EACH * processes:
                    yield _oldest(waiting)
            while waiting:
                yield _oldest(waiting)
        except BrokenProcessPool as error:
            raise _lost_process() from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if isinstance(read, StageError):  # what was read before it came first, and may have been wrong too
        raise read


def _next(tasks: Iterator[tuple[T, Task]]) -> tuple[T, Task] | StageError | None:
    """The next task, or why there is none; None at the end."""
    try:
        return next(tasks, None)
    except StageError as error:
        return error


def _oldest(waiting: "deque[tuple[T, Task, Future[MadeBatch]]]") -> tuple[T, Task, MadeBatch]:
    label, task, future = waiting.popleft()
    return label, task, future.result()


def _lost_process() -> StageError:
    """The error for a process that has ended without a word, in the middle of its rows."""
    if kills_for_memory(MEMORY_EVENTS):
        return StageError(
            Reason.OUT_OF_MEMORY, f"The kernel has killed a process that makes rows for want of memory. {MORE_MEMORY}"
        )
    return StageError(
        Reason.TRAINER_FAILED,
        "A process that makes rows has ended without a word. Look whether the kernel says that it was killed for want "
        f"of memory (dmesg). {MORE_MEMORY}",
        ExitCode.INTERNAL,
    )


def processes_for(size: int, cores: int | None = None, memory: int | None = None) -> int:
    """How many processes make rows of so many bytes.

    Args:
        size: Bytes of all rows, unpacked.
        cores: How many this process may use; None: as many as the kernel says.
        memory: What this pod may take, in bytes; None: as much as the kernel says.
    """
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    room = (_memory_limit() if memory is None else memory) - _OWN_BYTES
    return max(1, min(_MOST, cores, room // _BYTES_OF_EACH)) if size >= WORTH_BYTES else 1


def _memory_limit() -> int:
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    return sys.maxsize if limit == "max" else int(limit)


_MAKER: RowMaker | None = None
_SIGNAL_WHEN_PARENT_ENDS = 1
"""PR_SET_PDEATHSIG of <linux/prctl.h>: a process that is killed does not end those that it has started."""


def _begin(settings: MakerSettings) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_SIGNAL_WHEN_PARENT_ENDS, signal.SIGKILL)
    global _MAKER  # noqa: PLW0603 - a pool's process has no other place for what it keeps
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each core has a process already
    _hide_torch()
    _MAKER = settings.maker()


def _hide_torch() -> None:
    """Let transformers find no torch, which tokenizers don't need: it is 400 MB and most seconds of a process's start.

    transformers looks by importlib.util.find_spec, once, when it is imported.
    """
    os.environ["TRANSFORMERS_VERBOSITY"] = "critical"  # it would say that models are not available
    found = importlib.util.find_spec
    importlib.util.find_spec = lambda name, package=None: None if name == "torch" else found(name, package)


def _make(task: Task) -> MadeBatch:
    if _MAKER is None:
        raise RuntimeError("the process was not begun")
    return _MAKER.make(task)
