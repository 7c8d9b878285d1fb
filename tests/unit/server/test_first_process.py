"""A container's first process and SIGTERM: none is lost, whatever is imported, computed or waited for."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dev.cluster.ports import free_port
from sluice_api import pods
from sluice_server.first_process import TERMINATED
from sluice_server.paths import ROOT_ENV, SERVE_PORT_ENV
from tests.unit.server.conftest import SPEC

SECONDS = 30
"""Far less than a pod's grace, far more than any of this takes."""

STUBBORN = """
import signal, sys, time
from sluice_server.first_process import work_in_child

def work():
    signal.signal(signal.SIGTERM, {handler})
    print("begun", flush=True)
    {then}

work_in_child(work, int(sys.argv[1]), 2)
"""


@contextmanager
def process(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process of Python's that begins as one of a pod does: with SIGTERM blocked."""
    with subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}),  # noqa: PLW1509 - no threads
    ) as begun:
        try:
            yield begun
        finally:
            begun.kill()


@pytest.mark.parametrize("container", ["agent", "vllm"])
def test_sigterm_at_the_start_of_a_container(container: str, tmp_path: Path) -> None:
    environment = {ROOT_ENV: str(tmp_path), SERVE_PORT_ENV: str(free_port()), pods.SLOT_ENV: SPEC.to_json()}
    with process("-m", "sluice_server", container, **environment) as begun:
        begun.send_signal(signal.SIGTERM)
        assert begun.wait(SECONDS) == TERMINATED


@pytest.mark.parametrize(
    ("rule", "handler", "then", "listens", "code"),
    [
        ("who does not listen has nothing to lose", "signal.SIG_IGN", "time.sleep(600)", False, TERMINATED),
        ("who listens ends what is in flight", "lambda *_: sys.exit(7)", "time.sleep(600)", True, 7),
        ("but has not for ever", "signal.SIG_IGN", "time.sleep(600)", True, TERMINATED),
    ],
)
def test_sigterm(rule: str, handler: str, then: str, listens: bool, code: int) -> None:
    port = free_port()
    with ExitStack() as listening, process("-c", STUBBORN.format(handler=handler, then=then), str(port)) as begun:
        if listens:
            listening.enter_context(socket.create_server(("127.0.0.1", port)))
        assert begun.stdout is not None
        assert begun.stdout.readline() == "begun\n"
        begun.send_signal(signal.SIGTERM)
        assert begun.wait(SECONDS) == code
        assert begun.stdout.read() == ""  # which ends only when the child has ended too


@pytest.mark.parametrize(
    ("then", "code"), [("sys.exit(3)", 3), ("pass", 0), ("__import__('os').kill(__import__('os').getpid(), 9)", 137)]
)
def test_exit_code_of_a_container_is_that_of_its_child(then: str, code: int) -> None:
    with process("-c", STUBBORN.format(handler="signal.SIG_DFL", then=then), "1") as begun:
        assert begun.wait(SECONDS) == code
