"""The processes of a pod's other GPUs. The process of the first GPU starts and watches them; they end with it."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from pydantic import ValidationError

from sluice_api import pods
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, StageOutcome
from sluice_trainer.errors import PeerLost, StageError
from sluice_trainer.ranks import LOCAL_ENV, Rank
from sluice_trainer.signals import StopSignal

OUTCOME_ENV = "SLUICE_TERMINATION_FILE"
"""Where a process leaves its outcome, if not in the pod's termination message."""

MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")


def start(rank: Rank, stop: StopSignal) -> None:
    """Start the pod's other processes. If one fails, the whole pod ends, with that reason.

    They are started before anything heavy is imported, because each of them imports it too.
    """
    # In a pod the operator sets it; this is for a run without a cluster.
    os.environ.setdefault(pods.THREADS_ENV, str(max(1, (os.cpu_count() or 1) // rank.gpus)))
    outcomes = Path(tempfile.mkdtemp(prefix="sluice-ranks-"))
    for gpu in range(1, rank.gpus):
        outcome = outcomes / f"{gpu}.json"
        process = subprocess.Popen(
            [sys.executable, "-m", "sluice_trainer", *sys.argv[1:]],
            env={**os.environ, LOCAL_ENV: str(gpu), OUTCOME_ENV: str(outcome)},
            stdin=subprocess.PIPE,
        )
        threading.Thread(target=_watch, args=(gpu, process, outcome, stop), name=f"gpu-{gpu}", daemon=True).start()


def end_with_parent() -> None:
    """End this process when the process that started it is gone: stdin, a pipe from there, closes then."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(ExitCode.REQUEUE)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _watch(gpu: int, process: subprocess.Popen[bytes], outcome: Path, stop: StopSignal) -> None:
    code = process.wait()
    if code == ExitCode.DONE:
        return
    error = _error(gpu, code, outcome)
    stop.end(error, patience=stop.PEER_PATIENCE_SECONDS if isinstance(error, PeerLost) else 0)


def kills_for_memory(events: Path) -> int:
    """Processes of this container that the kernel has killed for lack of memory, as counted by its cgroup (v2)."""
    try:
        lines = events.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _error(gpu: int, code: int, file: Path) -> StageError:
    """The error for a process of this pod that has failed."""
    try:
        outcome = StageOutcome.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
        message = f"The process of GPU {gpu} {how} without a word"
        if code == -signal.SIGKILL and kills_for_memory(MEMORY_EVENTS):
            message += ", and the kernel says that this was for want of memory. Raise resources.memory."
            return StageError(Reason.OUT_OF_MEMORY, message)
        return StageError(Reason.TRAINER_FAILED, f"{message}. See the pod's logs.", ExitCode.INTERNAL)
    if outcome.reason == Reason.POD_LOST:
        return PeerLost()
    return StageError(Reason.known(outcome.reason) or Reason.TRAINER_FAILED, outcome.message, ExitCode(code))
