"""A checkpoint that several processes make, each of its own part, and the last step that all of them can save.

They talk by short words in the group's store, from the threads that save: their main threads may be in the middle of a
step, and wait there for each other.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_trainer import durable, failpoints
from sluice_trainer.errors import PeerLost, StageError
from sluice_trainer.ranks import Rank
from sluice_trainer.train.tensor_files import Part

T = TypeVar("T")

AGREED = 5.0
"""Seconds for all to say which step they have: their savers listen all the time."""
WRITTEN = 600.0
"""Seconds for the slowest part to be written."""
LISTEN = 0.02
"""Seconds between two looks for a word."""
_STOP, _LAST = "stop", "last"


class Together:
    """This process among those that save together."""

    def __init__(self, rank: Rank, store: Store) -> None:
        self._rank = rank
        self._store: Store = store.clone()  # type: ignore[attr-defined]  # the main thread may wait in the other one
        self._saves = 0
        self._stopping = threading.Event()

    @property
    def leads(self) -> bool:
        """This process makes the folder, and says when it is durable."""
        return self._rank.leads

    def when_somebody_stops(self, do: Callable[[PeerLost], object]) -> None:
        """Have something done, in a thread of its own, when another process is about to end."""

        def listen() -> None:
            who = self._heard(_STOP, float("inf"))
            if not self._stopping.is_set():
                do(PeerLost(f"Rank {who}"))

        threading.Thread(target=listen, name="stop-word", daemon=True).start()

    def write(self, folder: Path, tensors: dict[str, Tensor], finish: Callable[[Path], None]) -> None:
        """Make a folder of everybody's tensors. It is durable for all when it is so for the leader.

        Args:
            folder: On a file system that all processes share.
            tensors: This process's part.
            finish: Called by the leader, when all parts are there, to write what else belongs to it.

        Raises:
            StageError: somebody's part could not be written, or all are about to stop.
            OSError: this process's could not.
        """
        if self._stopping.is_set():
            save = _LAST
        else:
            self._saves += 1
            save = str(self._saves)
        if self.leads:
            self._lead(save, folder, tensors, finish)
        else:
            self._follow(save, tensors)

    def _lead(self, save: str, folder: Path, tensors: dict[str, Tensor], finish: Callable[[Path], None]) -> None:
        others = range(1, self._rank.size)
        with self._said(f"{save}/durable"), durable.new_folder(folder) as unfinished:
            self._store.set(f"{save}/folder", str(unfinished))
            self._write_part(unfinished, tensors)
            for other in others:
                self._must(self._hear(f"{save}/part-{other}", WRITTEN))
            finish(unfinished)
        if save == _LAST:  # the store ends with this process
            for other in others:
                self._heard(f"{save}/end-{other}", AGREED)

    def _follow(self, save: str, tensors: dict[str, Tensor]) -> None:
        unfinished = Path(self._hear(f"{save}/folder", WRITTEN))
        try:
            with self._said(f"{save}/part-{self._rank.number}"):
                self._write_part(unfinished, tensors)
        except (OSError, SafetensorError):
            self._must(self._heard(f"{save}/durable", 0) or "")  # the leader's folder is gone, for a reason of its own
            raise
        with self._said(f"{save}/end-{self._rank.number}"):
            self._must(self._hear(f"{save}/durable", WRITTEN))

    def _write_part(self, unfinished: Path, tensors: dict[str, Tensor]) -> None:
        save_file(tensors, unfinished / Part(self._rank.number, self._rank.size).file)
        failpoints.reached("tensors-written")

    def stop(self) -> None:
        """Give up whatever save is not whole, and tell the others to come to the last one."""
        self._stopping.set()
        with _peers():
            self._store.set(_STOP, str(self._rank.number))

    def agree(self, step: int, durable_step: int | None) -> tuple[int, int | None]:
        """The newest step that anybody has, and the newest that is durable.

        A step ends with what the processes do together, so that who is one behind has all that it needs for it.

        Raises:
            StageError: not everybody answers.
        """
        with _peers():
            self._store.set(f"at-{self._rank.number}", f"{step} {-1 if durable_step is None else durable_step}")
        words = [self._hear(f"at-{number}", AGREED) for number in range(self._rank.size)]
        steps, durables = zip(*(map(int, word.split()) for word in words), strict=True)
        newest = max(durables)
        return max(steps), None if newest < 0 else newest

    def _hear(self, subject: str, seconds: float) -> str:
        """A word that somebody says.

        Raises:
            StageError: nobody does in time, or all are about to stop meanwhile.
        """
        stopping = self._stopping.is_set()
        word = self._heard(subject, seconds, lambda: self._stopping.is_set() and not stopping)
        if word is None:
            why = "all are told to stop" if self._stopping.is_set() and not stopping else f"no word in {seconds:g} s"
            raise StageError(Reason.POD_LOST, f"Not all processes saved their parts: {why}.", ExitCode.REQUEUE)
        return word

    def _heard(self, subject: str, seconds: float, enough: Callable[[], bool] = lambda: False) -> str | None:
        until = time.monotonic() + seconds
        with _peers():
            while not self._store.check([subject]):
                if time.monotonic() > until or enough():
                    return None
                time.sleep(LISTEN)
            return str(self._store.get(subject), "utf-8")

    def _must(self, why_not: str) -> None:
        if why_not:
            raise StageError(Reason.OUTPUT_NOT_WRITABLE, f"Another process says: {why_not}", ExitCode.INTERNAL)

    @contextmanager
    def _said(self, subject: str) -> Iterator[None]:
        """Tell the others whether the block came to its end, and if not, why."""
        try:
            yield
        except Exception as error:
            with _peers():
                self._store.set(subject, str(error) or repr(error))
            raise
        with _peers():
            self._store.set(subject, "")


@contextmanager
def _peers() -> Iterator[None]:
    """The store is in the leader's memory."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost from error
