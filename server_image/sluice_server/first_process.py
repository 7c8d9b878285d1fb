"""A container's process 1, which ends at SIGTERM whatever the process that does the work is doing.

The kernel drops a SIGTERM for which process 1 has no handler, and a Python handler runs only between two bytecodes of
the main thread. vLLM's main thread has no handler while it imports, and runs no bytecode while it polls for its engine,
which takes minutes (vllm/v1/engine/core_client.py). A replica that was stopped then kept its GPUs for the whole grace
period. Standard library only, and little of it: until this module is imported, SIGTERM has no effect.
"""

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable

TERMINATED = 128 + signal.SIGTERM
_PR_SET_PDEATHSIG = 1
_SIGNALS = {signal.SIGTERM, signal.SIGCHLD}


def work_in_child(work: Callable[[], object], port: int, seconds: float) -> None:
    """Run `work` in a child process and exit with its exit code.

    At SIGTERM the child gets SIGTERM too if something listens on `port`, because there may be requests, which it lets
    end. If nothing listens, the container ends at once. It also ends when the child has not exited `seconds` after its
    SIGTERM: vLLM may kill its engine and wait for the answers in flight for ever.

    In a pod SIGTERM is blocked from before Python's start (manifests/pod.py), so that none is lost.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # The kernel does so by itself for process 1.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        work()
        return
    until = float("inf")
    while True:
        received = _next_signal(until)
        if received is None:
            os._exit(TERMINATED)
        if received == signal.SIGTERM:
            if not _listens(port):
                os._exit(TERMINATED)
            os.kill(child, signal.SIGTERM)
            until = min(until, time.monotonic() + seconds)
        elif (code := _ended(child)) is not None:
            os._exit(code)


def exit_at_sigterm() -> None:
    """Exit at once at SIGTERM, until the process installs a handler of its own."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _next_signal(until: float) -> int | None:
    """Wait for a signal; None when the monotonic clock has reached `until` before one came."""
    if until == float("inf"):
        return signal.sigwait(_SIGNALS)
    found = signal.sigtimedwait(_SIGNALS, max(0.0, until - time.monotonic()))
    return found and found.si_signo


def _ended(child: int) -> int | None:
    """The child's exit code, as a shell shows it; None while it lives. Orphans are reaped, as process 1 must."""
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
    """Whether something listens on a port, even if it is too busy to accept within a second."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True
