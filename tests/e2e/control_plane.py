"""Parts of the control plane that stand still for a while, where they are processes of this machine."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dev.cluster import provider
from dev.cluster.own import Own
from dev.cluster.processes import Processes


@contextmanager
def stands_still(part: str) -> Iterator[None]:
    """It does nothing and answers nobody; its connections stay, as those of a machine that is stopped.

    Args:
        part: a program, e.g. kube-apiserver.
    """
    running = provider.must_be_running()
    if running.name != Own.name:
        pytest.skip(f"{part} is no process of this machine")
    (process,) = (p for p in Processes(running.state / "control-plane") if p.name == part)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)
