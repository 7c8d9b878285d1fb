"""SIGTERM: what would be lost becomes durable, then the process ends, whatever the main thread is doing.

Python runs a signal's handler between two bytecodes of the main thread, which inside a forward pass of a large
model may be 20 s away (trainer-notes.md, measured). The C-level handler writes to a wakeup descriptor at once,
so a thread that reads it acts within milliseconds.
"""

import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:  # this module comes before everything that takes time to import
    from sluice_api.stages import TrainResult
    from sluice_trainer.errors import StageError

Save = Callable[[], "TrainResult"]

_INTERNAL = 70
"""stages.ExitCode.INTERNAL, which is not imported yet when this is needed."""


class StopSignal:
    """Ends the process when SIGTERM or another thread says so, with what `saved_by` has armed at that moment.

    A container's first process ignores a SIGTERM for which it has no handler, so this is made before anything else;
    one that comes before is kept until then (build/pod.py).
    """

    POD_PATIENCE, PEER_PATIENCE = 2.0, 4.0
    """Seconds in which another thread may know better why a pod, or some process of the group, is gone."""

    def __init__(self) -> None:
        self._end: Callable[[StageError | None, Save | None], NoReturn] | None = None
        self._can_end = threading.Event()
        self._first = threading.Lock()
        self._decided = threading.Event()
        self._save: Save | None = None
        self._wakeup, descriptor = os.pipe()
        os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, _noted)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the pod's command blocks it until here
        threading.Thread(target=self._wait, name="sigterm", daemon=True).start()

    def ends_by(self, end: "Callable[[StageError | None, Save | None], NoReturn]") -> None:
        """From now on the process ends so, at once if SIGTERM came already. SIGTERM is no error: None."""
        self._end = end
        self._can_end.set()

    def decide(self, patience: float = 0.0) -> None:
        """Go on alone towards the end of the process; who comes second never returns.

        Args:
            patience: Seconds in which others may still come first.
        """
        self._decided.wait(patience)
        self._first.acquire()
        self._decided.set()

    def end(self, error: "StageError | None", patience: float = 0.0) -> NoReturn:
        """End the process for this reason, from any thread; what is armed is saved."""
        try:
            self.decide(patience)
            _outrank_computing_threads()
            self._can_end.wait()
            if self._end is not None:
                self._end(error, self._save)
        finally:  # it does not return; if it fails, a process that was told to end ends all the same
            traceback.print_exc()
            os._exit(_INTERNAL)

    def saved_by(self, save: Save) -> None:
        """From now on there is something to lose, and `save` makes it durable from another thread."""
        self._save = save

    def _wait(self) -> None:
        while signal.SIGTERM not in os.read(self._wakeup, 64):
            pass
        self.end(None)


def _outrank_computing_threads() -> None:
    """Let the threads of OpenMP and autograd wait for Python's: saving takes half the time beside a busy step."""
    ours = {str(thread.native_id) for thread in threading.enumerate()}
    for thread in Path("/proc/self/task").glob("*"):
        if thread.name not in ours:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)


def _noted(number: int, frame: object) -> None:
    """Python needs a handler, or the kernel's default ends the process."""
