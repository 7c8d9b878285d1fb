"""A sharded checkpoint: each process writes its own shard, and before the end all agree on the last step to save.

The processes exchange short texts through the group's store, from the threads that save: the main threads may be in the
middle of a step, and wait there for each other.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from sluice_api.artifacts import file_digest
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_files.errors import FileError
from sluice_trainer import durable, failpoints
from sluice_trainer.errors import PeerLost, StageError
from sluice_trainer.ranks import Rank
from sluice_trainer.train.checkpoints.tensor_files import Shard
from sluice_trainer.train.group import peers
from sluice_trainer.work_folder import WorkFolder

ANSWER_SECONDS = 5.0
"""Seconds to wait for a text from a thread that has nothing else to do."""
WRITE_SECONDS, UPLOAD_SECONDS = 600.0, 1800.0
"""Seconds to wait for a text that follows the writing of one shard, or of all: to a volume, and to an object store."""
POLL_SECONDS = 0.02
"""Seconds between two looks into the store."""
_STOP, _LAST = "stop", "last"
_GOOD, _BAD, _GIVEN_UP = "+", "-", "?"
"""First character of a result's text. The rest is the result, or why there is none."""


class ShardedSaver:
    """This process among those that write a checkpoint together."""

    def __init__(self, rank: Rank, store: Store, work: WorkFolder) -> None:
        self._rank = rank
        self._work = work
        self._write_seconds = UPLOAD_SECONDS if work.is_copied else WRITE_SECONDS
        self._store: Store = store.clone()  # type: ignore[attr-defined]  # the main thread may block the original one
        self._saves = 0
        self._stopping = threading.Event()

    @property
    def leads(self) -> bool:
        """Whether this process makes the folder, and says when it is durable."""
        return self._rank.leads

    def on_peer_stop(self, do: Callable[[PeerLost], object]) -> None:
        """Call `do`, in a thread of its own, when another process is about to end early."""

        def listen() -> None:
            with suppress(RuntimeError):  # the leader has ended, with the store, as it should in the end
                self._poll_store(_STOP, float("inf"))
                if not self._stopping.is_set():
                    do(PeerLost())

        threading.Thread(target=listen, name="peer-stop", daemon=True).start()

    def write(
        self,
        folder: Path,
        tensors: dict[str, Tensor],
        finish: Callable[[Path, dict[str, str]], None],
        *,
        needed: bool = True,
        last: bool = False,
    ) -> None:
        """Write a folder with the tensors of all processes, and wait until it is durable. All call this equally often.

        Args:
            folder: Of the job's folder; the same one in all of them.
            tensors: This process's shard.
            finish: Called in the leader with the digests of all shards, once all are written, to write the other files.
            needed: False if there is such a folder already; the leader's value counts.
            last: The process is about to end. Any other save is given up once a process is told to stop.

        Raises:
            PeerLost: all are about to end, or the leader has ended.
            StageError: another process's shard could not be written.
            OSError: this process's shard could not be written.
        """
        self._saves += not last
        save = _LAST if last else str(self._saves)
        if self.leads:
            self._lead(save, folder if needed else None, tensors, finish)
        else:
            self._follow(save, folder, tensors)

    def _lead(
        self,
        save: str,
        folder: Path | None,
        tensors: dict[str, Tensor],
        finish: Callable[[Path, dict[str, str]], None],
    ) -> None:
        others = range(1, self._rank.size)
        with self._announce_result(f"{save}/durable"):
            if folder is None:
                self._put(f"{save}/folder", "")
            else:
                with self._work.new_folder(folder) as unfinished:
                    self._put(f"{save}/folder", unfinished.name)
                    files = dict([self._write_shard(unfinished, tensors)])
                    for other in others:
                        name, digest = self._result(f"{save}/shard-{other}", save).split()
                        files[name] = digest
                    finish(unfinished, files)
        for other in others:  # the store ends with this process
            self._poll_for(f"{save}/end-{other}", ANSWER_SECONDS)

    def _follow(self, save: str, folder: Path, tensors: dict[str, Tensor]) -> None:
        unfinished: Path | None = None
        try:
            text = self._receive(f"{save}/folder", self._write_seconds, save)
            unfinished = _beside(folder, text) if text else None
            if unfinished:
                try:
                    with self._announce_result(f"{save}/shard-{self._rank.number}") as result:
                        self._work.share(unfinished)
                        result.extend(self._write_shard(unfinished, tensors))
                        self._work.add(unfinished / result[0])
                except (OSError, SafetensorError, FileError):
                    if not unfinished.exists():  # the leader has given up, and says why in a moment
                        self._result(f"{save}/durable", save)
                    raise
            outcome = self._receive(f"{save}/durable", self._write_seconds, save)
            if unfinished and not outcome.startswith(_GOOD):
                self._remove_shard(unfinished)
            _parse_result(outcome)
        finally:
            if unfinished and self._work.is_copied:
                self._remove_shard(unfinished)
            self._put(f"{save}/end-{self._rank.number}", "")

    def _remove_shard(self, unfinished: Path) -> None:
        """Remove this process's own file, which it wrote while the leader removed the folder; nothing else."""
        with suppress(OSError):
            (unfinished / Shard(self._rank.number, self._rank.size).file).unlink(missing_ok=True)
            unfinished.rmdir()  # the last process to do so finds it empty

    def _write_shard(self, unfinished: Path, tensors: dict[str, Tensor]) -> tuple[str, str]:
        file = unfinished / Shard(self._rank.number, self._rank.size).file
        save_file(tensors, file)
        failpoints.reached("tensors-written")
        return file.name, file_digest(file)

    def stop(self) -> None:
        """Give up a save that is not whole, and tell the others to join the last one."""
        self._stopping.set()
        self._put(_STOP, str(self._rank.number))

    def newest_step(self, step: int) -> int:
        """Return the newest step that any process has done.

        A step ends with a collective, so that a process which is one step behind has all that it needs to do it.

        Args:
            step: This process's newest step. It does no further one by itself.

        Raises:
            StageError: not every process answers.
        """
        return max(map(int, self._all_gather("step", str(step), ANSWER_SECONDS)))

    def newest_durable(self, step: int | None) -> int | None:
        """Return the newest durable step that any process knows of; None if there is none.

        Args:
            step: The newest one that this process knows of, once no other save goes on here.

        Raises:
            StageError: not every process answers.
        """
        mine = "" if step is None else str(step)
        known = [int(text) for text in self._all_gather("durable", mine, self._write_seconds) if text]
        return max(known, default=None)

    def _all_gather(self, key: str, text: str, seconds: float) -> list[str]:
        self._put(f"{key}-{self._rank.number}", text)
        return [self._receive(f"{key}-{number}", seconds, _LAST) for number in range(self._rank.size)]

    def _put(self, key: str, text: str) -> None:
        with peers():
            self._store.set(key, text)

    def _receive(self, key: str, seconds: float, save: str) -> str:
        """Wait for the text of a key, as part of a save.

        Raises:
            PeerLost: all are about to end, and this save is not the last one.
            StageError: it does not come in time.
        """
        text = self._poll_for(key, seconds, lambda: save != _LAST and self._stopping.is_set())
        if text is not None:
            return text
        if save != _LAST and self._stopping.is_set():
            raise PeerLost
        raise StageError(Reason.POD_LOST, f"No answer for {key} in {seconds:g} s.", ExitCode.REQUEUE)

    def _poll_for(self, key: str, seconds: float, enough: Callable[[], bool] = lambda: False) -> str | None:
        with peers():
            return self._poll_store(key, seconds, enough)

    def _poll_store(self, key: str, seconds: float, enough: Callable[[], bool] = lambda: False) -> str | None:
        until = time.monotonic() + seconds
        while not self._store.check([key]):
            if time.monotonic() > until or enough():
                return None
            time.sleep(POLL_SECONDS)
        return str(self._store.get(key), "utf-8")

    def _result(self, key: str, save: str) -> str:
        return _parse_result(self._receive(key, self._write_seconds, save))

    @contextmanager
    def _announce_result(self, key: str) -> Iterator[list[str]]:
        """Put the result of the block under a key: the texts that it leaves in the list, or why there is none."""
        result: list[str] = []
        try:
            yield result
        except PeerLost:
            self._put(key, _GIVEN_UP)
            raise
        except Exception as error:
            self._put(key, f"{_BAD}{str(error) or repr(error)}")
            raise
        self._put(key, f"{_GOOD}{' '.join(result)}")


def _beside(folder: Path, name: str) -> Path:
    """Return the folder in which the leader writes what becomes `folder`.

    The store has no password, so anybody on its network may have put the name there. Only a name that the leader could
    have made is accepted, and the folder is always a sibling of the one that this process knows itself.

    Raises:
        StageError: the leader can't have put this name.
    """
    if not durable.is_unfinished(name, folder):
        raise StageError(
            Reason.TRAINER_FAILED,
            f"The group's store says that {folder.name} is written to {name[:200]!r}, which its leader never says: "
            "something else on the network writes to the store. Let only the job's own pods reach its pods.",
            ExitCode.INTERNAL,
        )
    return folder.with_name(name)


def _parse_result(text: str) -> str:
    """Return the result that another process has announced.

    Raises:
        PeerLost: it has given up.
        StageError: it has failed.
    """
    kind, rest = text[:1], text[1:]
    if kind == _GIVEN_UP:
        raise PeerLost
    if kind == _BAD:
        raise StageError(Reason.OUTPUT_NOT_WRITABLE, f"Another process says: {rest}", ExitCode.INTERNAL)
    return rest
