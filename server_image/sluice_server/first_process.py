"""A container's first process, which ends when it is told to, whatever the one that does the work is at.

The kernel drops a SIGTERM for which its first process has no handler, and a handler of Python's runs only between two
bytecodes of the main thread. vLLM's main thread has neither for most of its start: imports, then minutes in a poll for
its engine (vllm/v1/engine/core_client.py) that no signal ends. A replica that was stopped then kept its GPUs for the
whole grace of its pod. Standard library only, and little of it: what is not imported yet can't be interrupted.
"""

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable

TERMINATED = 128 + signal.SIGTERM
_PR_SET_PDEATHSIG = 1
_HEARD = {signal.SIGTERM, signal.SIGCHLD}


def work_in_child(work: Callable[[], object], port: int, seconds: float) -> None:
    """Run `work` in a child process and end as it ends.

    On SIGTERM the child is told so if something listens on `port`: then there may be requests, which it lets end.
    Otherwise there is nothing to lose, and all of the container ends at once. So it does when the child has not ended
    so many seconds after it was told: vLLM may kill its engine, and wait for the answers that were in flight for ever.

    In a pod SIGTERM is blocked from before Python's start (build/pod.py), so that none is lost.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # by the kernel already, where this is process 1
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        work()
        return
    until = float("inf")
    while True:
        heard = _next_signal(until)
        if heard is None:
            os._exit(TERMINATED)
        if heard == signal.SIGTERM:
            if not _listens(port):
                os._exit(TERMINATED)
            os.kill(child, signal.SIGTERM)
            until = min(until, time.monotonic() + seconds)
        elif (code := _ended(child)) is not None:
            os._exit(code)


def end_when_told() -> None:
    """End at once at SIGTERM, from now until a handler of the process's own takes its place."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _next_signal(until: float) -> int | None:
    """None when it is as late as that by the monotonic clock."""
    if until == float("inf"):
        return signal.sigwait(_HEARD)
    found = signal.sigtimedwait(_HEARD, max(0.0, until - time.monotonic()))
    return found and found.si_signo


def _ended(child: int) -> int | None:
    """The child's exit code, as a shell has it; None while it lives. Orphans are the first process's to bury."""
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if ended == 0:
            return None
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _listens(port: int) -> bool:
    """Whether somebody takes connections; one who is too busy to do so in a second is somebody."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True
