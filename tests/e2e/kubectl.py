"""kubectl as a user types it, and the API server's own watch streams."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

Object = dict[str, Any]
Objects = dict[str, Object]
"""By uid."""

Selectors = dict[str, str]
Watches = list[subprocess.Popen[str]]

COLLECTIONS = {
    "ftj": ("apis/sluice.dev/v1alpha1", "finetunejobs"),
    "ie": ("apis/sluice.dev/v1alpha1", "inferenceengines"),
    "ad": ("apis/sluice.dev/v1alpha1", "adapters"),
    "jobs": ("apis/batch/v1", "jobs"),
    "deployments": ("apis/apps/v1", "deployments"),
    "leases": ("apis/coordination.k8s.io/v1", "leases"),
    "pods": ("api/v1", "pods"),
    "resourcequotas": ("api/v1", "resourcequotas"),
    "hpa": ("apis/autoscaling/v2", "horizontalpodautoscalers"),
}


class Refused(Exception):
    """kubectl said no."""


@dataclass(frozen=True)
class Kubectl:
    """One cluster, as its administrator sees it."""

    program: Path
    kubeconfig: Path

    def __call__(self, *words: str, give: Object | list[Object] | None = None, patience: int = 180) -> str:
        """Run kubectl; `give` goes to its standard input.

        Raises:
            Refused: with what kubectl said.
        """
        run = subprocess.run(
            self.command(*words),
            input=_documents(give),
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )
        if run.returncode:
            raise Refused(run.stderr.strip() or run.stdout.strip())
        return run.stdout

    def command(self, *words: str) -> list[str]:
        """The command line."""
        return [str(self.program), f"--kubeconfig={self.kubeconfig}", *words]

    def apply(self, *objects: Object) -> None:
        """Create or change objects."""
        self("apply", "-f", "-", give=list(objects))

    def read(self, *words: str) -> Object:
        """`kubectl get`, as an object."""
        found: Object = json.loads(self("get", *words, "-o", "json"))
        return found

    def states(
        self,
        kind: str,
        namespace: str = "",
        *,
        seconds: float,
        selectors: Selectors | None = None,
        watches: Watches | None = None,
    ) -> Iterator[Objects]:
        """What there is now, and again after each change, for so many seconds. Never misses a change.

        Args:
            selectors: labelSelector and fieldSelector, as the API server takes them.
            watches: takes the process that watches, for another thread that wants to end it.
        """
        chosen = selectors or {}
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            found, version = self._list(kind, namespace, chosen)
            yield dict(found)
            for event in self._events(kind, namespace, {**chosen, "resourceVersion": version}, left, watches):
                if event["type"] == "ERROR":
                    break  # too old a version: list again
                uid = event["object"]["metadata"]["uid"]
                if event["type"] == "DELETED":
                    found.pop(uid, None)
                else:
                    found[uid] = event["object"]
                yield dict(found)

    def _list(self, kind: str, namespace: str, selectors: Selectors) -> tuple[Objects, str]:
        listed = json.loads(self("get", "--raw", _path(kind, namespace, selectors)))
        return {each["metadata"]["uid"]: each for each in listed["items"]}, listed["metadata"]["resourceVersion"]

    def _events(
        self, kind: str, namespace: str, query: Selectors, seconds: float, watches: Watches | None
    ) -> Iterator[Object]:
        watch = {**query, "watch": "1", "timeoutSeconds": str(int(seconds) + 1)}
        command = self.command("get", "--raw", _path(kind, namespace, watch))
        with running(command, seconds) as process:
            if watches is not None:
                watches.append(process)
            for line in process.stdout or ():
                if line.endswith("\n"):  # the last one may be cut when the process is ended
                    yield json.loads(line)


@contextmanager
def running(command: list[str], seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block, or when its time is over."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()


def _path(kind: str, namespace: str, query: Selectors) -> str:
    api, plural = COLLECTIONS[kind]
    within = f"namespaces/{namespace}/" if namespace else ""
    return f"/{api}/{within}{plural}?{urlencode(query)}"


def _documents(given: Object | list[Object] | None) -> str | None:
    if given is None:
        return None
    items = given if isinstance(given, list) else [given]
    return "\n---\n".join(map(json.dumps, items))
