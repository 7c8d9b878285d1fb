"""A team: one namespace, with what a user of Sluice does in it."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.volumes import volume
from tests.e2e import objects
from tests.e2e.kubectl import Kubectl, Object, Refused, Selectors

RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
SOON = 180
"""Seconds for what the operator does by itself."""
LONG = 420
"""Seconds for what starts vLLM or trains, on a busy machine of two cores."""


@dataclass(frozen=True)
class Answer:
    """What an engine said."""

    model: str
    text: str


@dataclass(frozen=True)
class Team:
    """A namespace under Pod Security `restricted`, with claims for models, datasets and adapters."""

    kubectl: Kubectl
    proxy: str
    """Address of `kubectl proxy`."""
    name: str

    def settle(self) -> None:
        """Make the namespace and its claims."""
        for claim in ("models", "datasets", "adapters"):
            self.volume(claim)
        self.kubectl("label", "namespace", self.name, RESTRICTED, "--overwrite")

    def volume(self, claim: str) -> Path:
        """A claim of this namespace, made unless it is there, and the folder behind it."""
        return volume(self.name, claim)

    def apply(self, *wanted: Object) -> None:
        """kubectl apply, in this namespace."""
        self.kubectl.apply(*({**each, "metadata": {**each["metadata"], "namespace": self.name}} for each in wanted))

    def patch(self, kind: str, name: str, **spec: Any) -> None:
        """Change fields of a spec."""
        self._do("patch", kind, name, "--type=merge", f"--patch={json.dumps({'spec': spec})}")

    def get(self, kind: str, name: str) -> Object | None:
        """An object; None when it is not there."""
        try:
            return self.kubectl.read(kind, name, f"--namespace={self.name}")
        except Refused as refused:
            if "NotFound" not in str(refused):
                raise
            return None

    def every(self, kind: str, **labels: str) -> list[Object]:
        """The objects with these labels (sluice.dev/...)."""
        return list(self.kubectl.read(kind, f"--namespace={self.name}", f"--selector={selector(labels)}")["items"])

    def delete(self, *what: str, wait: bool = True) -> None:
        """Delete by kind and name; waits until it is gone."""
        self._do("delete", *what, "--ignore-not-found", f"--wait={str(wait).lower()}")

    def wait(self, kind: str, name: str, until: Callable[[Object], object], what: str, seconds: int = SOON) -> Object:
        """Watch one object until it is as wanted; returns it."""
        found = self._wait(
            kind, {"fieldSelector": f"metadata.name={name}"}, lambda all_: bool(all_ and until(all_[0])), what, seconds
        )
        return found[0]

    def wait_all(
        self,
        kind: str,
        until: Callable[[list[Object]], object],
        what: str,
        seconds: int = SOON,
        **labels: str,
    ) -> list[Object]:
        """Watch the objects with these labels until they are, together, as wanted."""
        return self._wait(kind, {"labelSelector": selector(labels)}, until, what, seconds)

    def wait_job(self, name: str, until: Callable[["JobState"], object], what: str, seconds: int = LONG) -> "JobState":
        """Watch a FineTuneJob until it is as wanted; fails at once when the job has failed for good."""

        def over(job: Object) -> bool:
            state = JobState(job)
            if until(state):
                return True
            if state.failed:
                pytest.fail(f"{name} has failed before {what}: {state}")
            return False

        return JobState(self.wait("ftj", name, over, f"{name}: {what}", seconds))

    def finished(self, name: str) -> "JobState":
        """The job once it has succeeded."""
        return self.wait_job(name, lambda job: job.is_true("Succeeded"), "has succeeded", LONG)

    def training(self, name: str, step: int = 1) -> "JobState":
        """The job once it trains, at this step or later."""
        return self.wait_job(name, lambda job: job.step >= step, f"trains, step {step} or later")

    def whole(self) -> Object:
        """The engine with nothing lent, and every replica ready."""
        wanted = lambda e: e["status"].get("ready") == "2/2" and e["status"]["lent"] == 0  # noqa: E731
        return self.wait("ie", objects.ENGINE, lambda e: "status" in e and wanted(e), "the engine is whole", LONG)

    def draining(self) -> Object:
        """The engine once one of its replicas drains."""
        return self.wait("ie", objects.ENGINE, is_draining, "a replica drains")

    def fresh(self) -> None:
        """As at the start: no job, the engine as it is usually, and whole."""
        self.delete("ftj,ad,resourcequota,pdb,hpa", "--all")
        self.apply(objects.engine())
        self.wait_all("jobs", lambda jobs: not jobs, "no stage Job is left")
        self.whole()

    def slot_pods(self) -> list[Object]:
        """The engine's pods that are not on their way out."""
        return [p for p in self.every("pods", engine=objects.ENGINE) if "deletionTimestamp" not in p["metadata"]]

    def slot_sizes(self) -> list[int]:
        """Sizes of the engine's Deployments, by slot."""
        slots = sorted(self.every("deployments", engine=objects.ENGINE), key=lambda d: str(d["metadata"]["name"]))
        return [slot["spec"]["replicas"] for slot in slots]

    def chat(self, model: str, question: str, *, pod: str = "") -> Answer:
        """Ask the engine's Service, or one pod; greedy."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 24,
            "temperature": 0,
        }
        answer = self._http("v1/chat/completions", pod, body)
        return Answer(answer["model"], answer["choices"][0]["message"]["content"])

    def models(self, pod: str) -> set[str]:
        """What a replica lists under /v1/models."""
        return {model["id"] for model in self._http("v1/models", pod)["data"]}

    def url(self, pod: str = "") -> str:
        """The engine's Service, or one pod of it, through the API server."""
        target = f"pods/{pod}:8000" if pod else f"services/{objects.ENGINE}:http"
        return f"{self.proxy}/api/v1/namespaces/{self.name}/{target}/proxy"

    def _http(self, path: str, pod: str, body: Object | None = None) -> Object:
        request = urllib.request.Request(
            f"{self.url(pod)}/{path}",
            data=json.dumps(body).encode() if body else None,
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=SOON) as answer:
                found: Object = json.load(answer)
                return found
        except urllib.error.HTTPError as refused:
            raise AssertionError(f"{path} of {pod or 'the Service'}: {refused.code} {refused.read()!r}") from refused

    def _do(self, *words: str) -> str:
        return self.kubectl(*words, f"--namespace={self.name}")

    def _wait(
        self,
        kind: str,
        selectors: Selectors,
        until: Callable[[list[Object]], object],
        what: str,
        seconds: int,
    ) -> list[Object]:
        last: list[Object] = []
        began = time.monotonic()
        for state in self.kubectl.states(kind, self.name, seconds=seconds, selectors=selectors):
            last = list(state.values())
            if until(last):
                return last
        statuses = [{"name": each["metadata"]["name"], "status": each.get("status")} for each in last]
        pytest.fail(
            f"waited {time.monotonic() - began:.0f} s until {what}; last seen: {json.dumps(statuses, indent=1)}"
        )

    def renamed(self, name: str) -> "Team":
        """Another team of the same cluster."""
        return replace(self, name=name)


@dataclass(frozen=True)
class JobState:
    """A FineTuneJob as a user reads it."""

    found: Object = field(repr=False)

    @property
    def status(self) -> Object:
        """What the operator says."""
        status: Object = self.found.get("status", {})
        return status

    @property
    def step(self) -> int:
        """The newest step that was reported."""
        return int(self.status.get("progress", {}).get("step", 0))

    @property
    def progress(self) -> Object:
        """What the trainer says."""
        progress: Object = self.status.get("progress", {})
        return progress

    @property
    def summary(self) -> str:
        """The reason in the STATUS column."""
        return str(self.status.get("summary", ""))

    @property
    def message(self) -> str:
        """Why it is where it is: the message of the condition that sums it up."""
        return str(self.condition("Succeeded").get("message", ""))

    @property
    def failed(self) -> bool:
        """Whether it has failed for good."""
        return "finishedAt" in self.status and not self.is_true("Succeeded")

    @property
    def digest(self) -> str:
        """Digest of the adapter that came out."""
        return str(self.status["result"]["digest"])

    @property
    def attempts(self) -> list[Object]:
        """How earlier attempts ended."""
        return list(self.status.get("attempts", ()))

    def condition(self, kind: str) -> Object:
        """One condition; empty while it is not there."""
        return next((c for c in self.status.get("conditions", ()) if c["type"] == kind), {})

    def is_true(self, kind: str) -> bool:
        """Whether a condition is True."""
        return self.condition(kind).get("status") == "True"

    def __str__(self) -> str:
        """For a person."""
        return f"{self.summary}: {self.message}"


def is_draining(engine: Object) -> bool:
    """Whether one of an engine's replicas drains."""
    return "Draining" in {slot["state"] for slot in engine["status"]["slots"]}


def selector(labels: dict[str, str]) -> str:
    """A label selector over our own labels."""
    return ",".join(f"sluice.dev/{name}={value}" for name, value in labels.items())
