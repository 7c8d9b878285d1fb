"""A checkpoint that several processes make, each of its own part, and the last step that all of them can save.

They talk by short words in the group's store, from the threads that save: their main threads may be in the middle of a
step, and wait there for each other.
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
from sluice_trainer import durable, failpoints
from sluice_trainer.errors import PeerLost, StageError
from sluice_trainer.ranks import Rank
from sluice_trainer.train.checkpoints.tensor_files import Part
from sluice_trainer.train.group import peers

SAID = 5.0
"""Seconds for a word that is said by a thread which has nothing else to do."""
WRITTEN = 600.0
"""Seconds for a word that is said when a part is written, or all of them are."""
LISTEN = 0.02
"""Seconds between two looks for a word."""
_STOP, _LAST = "stop", "last"
_GOOD, _BAD, _GIVEN_UP = "+", "-", "?"
"""What the word about a piece of work begins with; what follows is the result, or why there is none."""


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
        """Have something done, in a thread of its own, when another process is about to end before its time."""

        def listen() -> None:
            with suppress(RuntimeError):  # the leader has ended, with the store, as it should in the end
                self._waited(_STOP, float("inf"))
                if not self._stopping.is_set():
                    do(PeerLost())

        threading.Thread(target=listen, name="stop-word", daemon=True).start()

    def write(
        self,
        folder: Path,
        tensors: dict[str, Tensor],
        finish: Callable[[Path, dict[str, str]], None],
        *,
        needed: bool = True,
        last: bool = False,
    ) -> None:
        """Make a folder of everybody's tensors: all call this equally often. It is durable when it is so for all.

        Args:
            folder: On a file system that all processes share; the same one in all of them.
            tensors: This process's part.
            finish: Called by the leader with the digests of all parts, when they are there, to write what else belongs
                to it.
            needed: False if there is such a folder already; what the leader says counts.
            last: Any other save is given up once somebody is told to stop.

        Raises:
            PeerLost: all are about to end, or the leader has ended.
            StageError: somebody's part could not be written.
            OSError: this process's could not.
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
        with self._told(f"{save}/durable"):
            if folder is None:
                self._say(f"{save}/folder", "")
            else:
                with durable.new_folder(folder) as unfinished:
                    self._say(f"{save}/folder", unfinished.name)
                    files = dict([self._write_part(unfinished, tensors)])
                    for other in others:
                        name, digest = self._result(f"{save}/part-{other}", save).split()
                        files[name] = digest
                    finish(unfinished, files)
        for other in others:  # the store ends with this process
            self._heard(f"{save}/end-{other}", SAID)

    def _follow(self, save: str, folder: Path, tensors: dict[str, Tensor]) -> None:
        try:
            word = self._hear(f"{save}/folder", WRITTEN, save)
            unfinished = _beside(folder, word) if word else None
            if unfinished:
                try:
                    with self._told(f"{save}/part-{self._rank.number}") as result:
                        result.extend(self._write_part(unfinished, tensors))
                except (OSError, SafetensorError):
                    if not unfinished.exists():  # the leader has given up, and says why in a moment
                        self._result(f"{save}/durable", save)
                    raise
            said = self._hear(f"{save}/durable", WRITTEN, save)
            if unfinished and not said.startswith(_GOOD):
                self._remove_part(unfinished)
            _result_of(said)
        finally:
            self._say(f"{save}/end-{self._rank.number}", "")

    def _remove_part(self, unfinished: Path) -> None:
        """Remove what was written while the leader removed the rest: this process's own file, and nothing else."""
        with suppress(OSError):
            (unfinished / Part(self._rank.number, self._rank.size).file).unlink()
            unfinished.rmdir()  # who comes last leaves it empty

    def _write_part(self, unfinished: Path, tensors: dict[str, Tensor]) -> tuple[str, str]:
        file = unfinished / Part(self._rank.number, self._rank.size).file
        save_file(tensors, file)
        failpoints.reached("tensors-written")
        return file.name, file_digest(file)

    def stop(self) -> None:
        """Give up whatever save is not whole, and tell the others to come to the last one."""
        self._stopping.set()
        self._say(_STOP, str(self._rank.number))

    def newest_step(self, step: int) -> int:
        """The newest step that anybody has done; given this process's, after which it does no other.

        A step ends with what the processes do together, so that who is one behind has all that it needs for it.

        Raises:
            StageError: not everybody answers.
        """
        return max(map(int, self._each_says("step", str(step), SAID)))

    def newest_durable(self, step: int | None) -> int | None:
        """The newest step that is durable; given what this process knows, once no other save goes on here.

        Raises:
            StageError: not everybody answers.
        """
        known = [int(word) for word in self._each_says("durable", "" if step is None else str(step), WRITTEN) if word]
        return max(known, default=None)

    def _each_says(self, subject: str, word: str, seconds: float) -> list[str]:
        self._say(f"{subject}-{self._rank.number}", word)
        return [self._hear(f"{subject}-{number}", seconds, _LAST) for number in range(self._rank.size)]

    def _say(self, subject: str, word: str) -> None:
        with peers():
            self._store.set(subject, word)

    def _hear(self, subject: str, seconds: float, save: str) -> str:
        """A word that somebody says for a save.

        Raises:
            PeerLost: all are about to end, and this save is not the last one.
            StageError: nobody says it in time.
        """
        word = self._heard(subject, seconds, lambda: save != _LAST and self._stopping.is_set())
        if word is not None:
            return word
        if save != _LAST and self._stopping.is_set():
            raise PeerLost
        raise StageError(Reason.POD_LOST, f"No word of {subject} in {seconds:g} s.", ExitCode.REQUEUE)

    def _heard(self, subject: str, seconds: float, enough: Callable[[], bool] = lambda: False) -> str | None:
        with peers():
            return self._waited(subject, seconds, enough)

    def _waited(self, subject: str, seconds: float, enough: Callable[[], bool] = lambda: False) -> str | None:
        until = time.monotonic() + seconds
        while not self._store.check([subject]):
            if time.monotonic() > until or enough():
                return None
            time.sleep(LISTEN)
        return str(self._store.get(subject), "utf-8")

    def _result(self, subject: str, save: str) -> str:
        return _result_of(self._hear(subject, WRITTEN, save))

    @contextmanager
    def _told(self, subject: str) -> Iterator[list[str]]:
        """Tell the others what came of the block: the words that it leaves in the list, or why there is no result."""
        result: list[str] = []
        try:
            yield result
        except PeerLost:
            self._say(subject, _GIVEN_UP)
            raise
        except Exception as error:
            self._say(subject, f"{_BAD}{str(error) or repr(error)}")
            raise
        self._say(subject, f"{_GOOD}{' '.join(result)}")


def _beside(folder: Path, name: str) -> Path:
    """Where the leader writes what becomes `folder`.

    The store has no password, so anybody on its network may have said the name: only one that the leader could have
    made is believed, and it leads nowhere but beside the folder that this process knows itself.

    Raises:
        StageError: the leader can't have said that.
    """
    if not durable.is_unfinished(name, folder):
        raise StageError(
            Reason.TRAINER_FAILED,
            f"The group's store says that {folder.name} is written to {name[:200]!r}, which its leader never says: "
            "something else on the network writes to the store. Let only the job's own pods reach its pods.",
            ExitCode.INTERNAL,
        )
    return folder.with_name(name)


def _result_of(word: str) -> str:
    """What came of a piece of work that another process tells."""
    kind, told = word[:1], word[1:]
    if kind == _GIVEN_UP:
        raise PeerLost
    if kind == _BAD:
        raise StageError(Reason.OUTPUT_NOT_WRITABLE, f"Another process says: {told}", ExitCode.INTERNAL)
    return told
