"""Programs that outlive the command that started them, and are stopped by a later one.

Each is recorded by its pid and the time at which it started, so that a pid that the kernel has given to another
program meanwhile is never signalled. Nothing is ever looked up by its name.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dev.errors import DevError

LAST_LINES = 15


@dataclass(frozen=True)
class Process:
    """A program that was started here."""

    name: str
    pid: int
    started: int  # in clock ticks since the machine booted, as /proc says it

    @property
    def running(self) -> bool:
        """Whether this very process is there and not a zombie."""
        return _started(self.pid) == self.started


class Processes:
    """The programs of one state folder, with a log file for each."""

    def __init__(self, state: Path) -> None:
        """Read the record that an earlier command has left, if there is one."""
        self.state = state
        self._record = state / "processes.json"
        self.logs = state / "logs"
        known = json.loads(self._record.read_text()) if self._record.exists() else []
        self._known = [Process(**process) for process in known]

    def __iter__(self) -> Iterator[Process]:
        """In the order in which they were started."""
        return iter(tuple(self._known))

    def start(self, name: str, command: Sequence[str | Path], *, path: Path | None = None) -> Process:
        """Start a program; `path` is put before everything else on its PATH."""
        self.logs.mkdir(parents=True, exist_ok=True)
        # Of memory there is enough. By its own measure Go's collector has a fifth of an API server's CPU time.
        environment = {"GOGC": "300", **os.environ}
        if path is not None:
            environment["PATH"] = f"{path}:{environment['PATH']}"
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.logs.parent,
                start_new_session=True,
            )
        process = Process(name, child.pid, _started(child.pid) or 0)
        self._known.append(process)
        self._save()
        return process

    def restart(self, name: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Kill a program, as a crash does, and start it again with the words with which it was started.

        `meanwhile` is called while it does not run.
        """
        (process,) = (process for process in self._known if process.name == name)
        words = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")[:-1]
        end(process, 10, signal.SIGKILL)
        self._known.remove(process)
        meanwhile()
        self.start(name, words)

    def log(self, name: str) -> Path:
        """The log file of a program."""
        return self.logs / f"{name}.log"

    def must_run(self) -> None:
        """Raise if any of them has ended, with its last words."""
        for process in self._known:
            if not process.running:
                log = self.log(process.name)
                raise DevError(f"{process.name} has ended. The end of {log}:\n{self.tail(process.name)}")

    def tail(self, name: str) -> str:
        """The last lines of a program's log."""
        if not self.log(name).exists():
            return "  (no log)"
        with self.log(name).open("rb") as log:
            log.seek(max(0, self.log(name).stat().st_size - 16_384))
            lines = log.read().decode(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(f"  {line[:400]}" for line in lines)

    def stop(self, *names: str, patience: float = 10) -> None:
        """End the named programs, or all, the latest first; by force what takes longer than `patience` seconds."""
        for process in reversed(tuple(self._known)):
            if not names or process.name in names:
                end(process, patience)
                self._known.remove(process)
                self._save()

    def _save(self) -> None:
        fresh = self._record.with_suffix(".fresh")
        fresh.write_text(json.dumps([asdict(process) for process in self._known]))
        fresh.replace(self._record)


def end(process: Process, patience: float, *reasons: signal.Signals) -> None:
    """Send SIGTERM, wait, and send SIGKILL if that wasn't enough."""
    for reason in reasons or (signal.SIGTERM, signal.SIGKILL):
        if process.running and not _gone_after(process, reason, patience):
            continue
        break
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)  # where it was our own child, leave no zombie


def _gone_after(process: Process, reason: signal.Signals, patience: float) -> bool:
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(handle, reason)
        return bool(select.select([handle], [], [], patience)[0])
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)


def _started(pid: int) -> int | None:
    """When the process with this pid started; None if there is none, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])
