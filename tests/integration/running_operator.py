"""The operator as a process, with its log: forked, or in an interpreter of its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dev.cluster.ports import free_port
from tests.integration.forked import Forked

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60


class Process(Protocol):
    """What of subprocess.Popen is needed here."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def returncode(self) -> Any:
        """Its exit status, once it has ended."""

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""

    def wait(self, timeout: float | None = None) -> object:
        """Until it has ended."""

    def send_signal(self, number: int, /) -> None:
        """A signal to this very process."""

    def terminate(self) -> None:
        """SIGTERM."""

    def kill(self) -> None:
        """SIGKILL."""


Launch = Callable[[Sequence[str], Mapping[str, str], Path], Process]
"""Start the operator with words of the command line, an environment, and its output in a file."""


def in_a_new_interpreter(words: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """As a pod would."""
    command = [sys.executable, "-m", "sluice_operator", *words]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=dict(environment))


@dataclass
class RunningOperator:
    """One replica."""

    name: str
    process: Process
    log: Path
    progress_port: int
    metrics_port: int

    @classmethod
    def start(
        cls,
        folder: Path,
        name: str,
        kubeconfig: Path,
        namespace: str,
        settings: dict[str, object],
        *words: str,
        launch: Launch = Forked.start,
    ) -> "RunningOperator":
        """Start it; it serves the custom resources of `namespace` only, and has its Lease there."""
        log = folder / f"{name}.{free_port()}.log"
        progress_port, metrics_port = free_port(), free_port()
        chosen: dict[str, object] = {
            "namespace": namespace,
            "pod_name": name,
            "watch_namespaces": namespace,
            "report_url": f"http://127.0.0.1:{progress_port}",
            "trainer_image": "nothing",
            "server_image": "nothing",
            "device": "cpu",
            "progress_port": progress_port,
            "metrics_port": metrics_port,
            "metrics_access": "Open",
            **settings,
        }
        environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "PYTHONPATH": str(ROOT / "operator"),
            **{f"SLUICE_{name.upper()}": str(value) for name, value in chosen.items()},
        }
        return cls(name, launch(words, environment, log), log, progress_port, metrics_port)

    def events(self, event: str = "") -> list[dict[str, Any]]:
        """What it has logged so far, or how often it has logged one event."""
        lines = []
        for line in self.log.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                lines.append({"event": line})
        return [line for line in lines if not event or line["event"] == event]

    async def logged(self, event: str, times: int = 1) -> list[dict[str, Any]]:
        """Wait until it has logged an event so often; a log cannot be listened to."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while len(found := self.events(event)) < times:
                    assert self.process.poll() is None, f"{self.name} has ended:\n{self.log.read_text()[-4000:]}"
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"never logged {event!r}:\n{self.log.read_text()[-4000:]}") from None
        return found

    async def leads(self) -> None:
        """Wait until it leads."""
        await self.logged("leading")

    def kill(self) -> None:
        """SIGKILL: it gets no chance to clean up."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> int:
        """SIGTERM, as the kubelet ends it; its exit status."""
        if self.process.poll() is None:
            self.wake()
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()
        return int(self.process.returncode)
