"""Sluice itself: installed by Helm, killed, and asked who leads."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dev.cache import REPOSITORY
from tests.e2e.kubectl import Kubectl

SYSTEM = "sluice-system"
RELEASE = "sluice"
LEASE = "sluice-operator"
TAKEN_OVER = 180


@dataclass(frozen=True)
class Sluice:
    """One release."""

    kubectl: Kubectl
    helm: Path

    def install(self, *settings: str) -> None:
        """Install it, or bring what is there to the chart as it is now; `settings` are name=value."""
        self._helm(
            *("upgrade", "--install", RELEASE, "charts/sluice", "--create-namespace", "--values=dev/values.yaml"),
            *(f"--set={setting}" for setting in settings),
            *("--wait", "--timeout=3m"),
        )

    def uninstall(self) -> None:
        """Remove it; what its users made stays.

        It leaves a lease of a minute, for operators that are slow to end. These have ended: the next need not wait.
        """
        self._helm("uninstall", RELEASE, "--ignore-not-found", "--wait", "--timeout=4m")
        self.kubectl("delete", "lease", LEASE, f"--namespace={SYSTEM}", "--ignore-not-found")

    def leader(self) -> str:
        """The process that leads: its pod's name and something unique."""
        return self.other_leader_than("")

    def kill_leader(self) -> None:
        """SIGKILL the process that leads, and wait until another one does."""
        before = self.leader()
        self.kill(before)
        self.other_leader_than(before)

    def kill(self, process: str) -> None:
        """SIGKILL a process, by its name as a candidate."""
        pod = process.rpartition("_")[0]
        processes = _operators(pod)
        if processes:
            for number in processes:
                os.kill(number, signal.SIGKILL)
        else:  # its node is not this machine
            self.kubectl("delete", "pod", pod, f"--namespace={SYSTEM}", "--force", "--grace-period=0")

    @contextmanager
    def stopped(self, process: str) -> Iterator[None]:
        """SIGSTOP a process, by its name as a candidate, and SIGCONT at the end."""
        processes = _operators(process.rpartition("_")[0])
        if not processes:
            pytest.skip("the operator's node is not this machine")
        for number in processes:
            os.kill(number, signal.SIGSTOP)
        try:
            yield
        finally:
            for number in processes:
                os.kill(number, signal.SIGCONT)

    def other_leader_than(self, before: str) -> str:
        """The process that leads once it is another one than before."""
        lease_only = {"fieldSelector": f"metadata.name={LEASE}"}
        for leases in self.kubectl.states("leases", SYSTEM, seconds=TAKEN_OVER, selectors=lease_only):
            for lease in leases.values():
                if (holder := lease["spec"].get("holderIdentity")) not in {before, "", None}:
                    return str(holder)
        pytest.fail(f"nobody took over from {before}")

    def _helm(self, *words: str) -> None:
        run = subprocess.run(
            [str(self.helm), f"--kubeconfig={self.kubectl.kubeconfig}", f"--namespace={SYSTEM}", *words],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert run.returncode == 0, f"helm {' '.join(words)}: {run.stderr or run.stdout}"


def _operators(pod: str) -> list[int]:
    """Ids of the operator's processes in a pod, where pods run on this machine."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if b"sluice_operator" in command and f"SLUICE_POD_NAME={pod}".encode() in environment:
            found.append(int(process.name))
    return found
