"""SIGTERM: the state is saved, then the process ends, whatever the main thread is doing.

Python runs a signal's handler between two bytecodes of the main thread, which inside a forward pass of a large
model may be 20 s away (measured). The C-level handler writes to a wakeup descriptor at once, so a thread that reads
it acts within milliseconds.
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


_STOPS = (signal.SIGTERM, signal.SIGHUP)
"""SIGHUP is what a terminal sends that is closed."""


class StopSignal:
    """Ends the process on SIGTERM or SIGHUP, or when a thread calls `end`; what `set_save` has set is called before.

    A container's first process ignores a SIGTERM for which it has no handler, so this is made before anything else;
    one that comes before is kept until then (manifests/pod.py).
    """

    POD_PATIENCE_SECONDS, PEER_PATIENCE_SECONDS = 2.0, 4.0
    """Seconds to wait, when a pod or another process is gone, for a thread that knows a better reason."""

    def __init__(self) -> None:
        self._end: Callable[[StageError | None, Save | None], NoReturn] | None = None
        self._handler_is_set = threading.Event()
        self._ending = threading.Lock()
        self._is_ending = threading.Event()
        self._save: Save | None = None
        self._wakeup, descriptor = os.pipe()
        os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        for number in _STOPS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means what it says
                signal.signal(number, _ignore)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the pod's command blocks it until here
        threading.Thread(target=self._wait, name="sigterm", daemon=True).start()

    def set_end_handler(self, end: "Callable[[StageError | None, Save | None], NoReturn]") -> None:
        """Set what ends the process; it is called at once if SIGTERM came already. Its error is None for SIGTERM."""
        self._end = end
        self._handler_is_set.set()

    def claim_end(self, patience: float = 0.0) -> None:
        """Make the calling thread the one that ends the process. For any other thread this never returns.

        Args:
            patience: Seconds in which another thread may come first.
        """
        self._is_ending.wait(patience)
        self._ending.acquire()
        self._is_ending.set()

    def end(self, error: "StageError | None", patience: float = 0.0) -> NoReturn:
        """Save, and end the process for this reason. Any thread may call it."""
        try:
            self.claim_end(patience)
            _outrank_computing_threads()
            self._handler_is_set.wait()
            if self._end is not None:
                self._end(error, self._save)
        finally:  # _end does not return; if it fails, the process ends all the same
            traceback.print_exc()
            os._exit(_INTERNAL)

    def set_save(self, save: Save) -> None:
        """Set what makes the state durable; it is called from another thread. Until now there was nothing to save."""
        self._save = save

    def _wait(self) -> None:
        while not {*os.read(self._wakeup, 64)} & {*_STOPS}:
            pass
        self.end(None)


def _outrank_computing_threads() -> None:
    """Lower the priority of OpenMP's and autograd's threads: saving then takes half the time beside a busy step."""
    ours = {str(thread.native_id) for thread in threading.enumerate()}
    for thread in Path("/proc/self/task").glob("*"):
        if thread.name not in ours:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)


def _ignore(number: int, frame: object) -> None:
    """Do nothing. Without a Python handler the kernel's default would end the process."""
