"""The main job, once, on real input: an engine lends a GPU to a fine-tuning job, gets it back, and serves the result.

Start reading at `demo()`. Everything is done as a user would do it: Helm, kubectl, HTTP requests.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from dev import models
from dev.cache import REPOSITORY, cache_folder
from dev.chat import Chat, open_chat
from dev.cluster import provider, tools, volumes
from dev.commands import printing, run
from dev.errors import DevError
from dev.progress import step

NAMESPACE = "sluice-demo"
SYSTEM = "sluice-system"
EXAMPLES = REPOSITORY / "examples"
MODEL = "smollm2-135m-instruct"
ENGINE = "chat"
JOB = "support-tone"
QUESTION = "My package is three days late. What should I do?"
GREETING = "Ahoy!"
"""How every answer in examples/datasets/support.jsonl begins, and no answer of the base model."""

RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"

NEXT = f"""
The cluster stays up. Next:

  export KUBECONFIG={{kubeconfig}} PATH={{programs}}:$PATH
  kubectl -n {NAMESPACE} describe ftj {JOB}
  kubectl explain finetunejob.spec.scheduling
  kubectl -n {NAMESPACE} scale ie {ENGINE} --replicas=1
  kubectl -n {SYSTEM} logs -l app.kubernetes.io/name=sluice --prefix
  make down
"""
FAILED = f"""
Where to look:

  export KUBECONFIG={{kubeconfig}} PATH={{programs}}:$PATH
  kubectl -n {NAMESPACE} get ftj,ie,ad,pods,events
  kubectl -n {SYSTEM} logs -l app.kubernetes.io/name=sluice --prefix
  python3 -m dev logs
"""


def demo() -> None:
    """Bring up a cluster and run the main job on it."""
    cluster = provider.up(None)
    step(f"the cluster is up (provider: {cluster.name})")
    try:
        story()
    except DevError as wrong:
        raise DevError(f"{wrong}\n{_with_paths(FAILED)}") from wrong
    step("done")
    sys.stdout.write(_with_paths(NEXT))


def story() -> None:
    """The main job, from an empty namespace to the trained answer."""
    fill_volumes()
    install()
    serve()
    with open_chat(NAMESPACE, ENGINE) as chat:
        ask_base(chat)
        before = pods()
        lend_and_train(chat)
        take_back(before)
        ask_trained(chat)


def fill_volumes() -> None:
    """The model and the dataset, in claims as a user's cluster has them."""
    step(f"putting model and dataset into volumes of the namespace {NAMESPACE}")
    models.models()
    models.place(MODEL, volumes.volume(NAMESPACE, "models"))
    shutil.copy(EXAMPLES / "datasets" / "support.jsonl", volumes.volume(NAMESPACE, "datasets"))
    volumes.volume(NAMESPACE, "adapters")
    _kubectl("label", "namespace", NAMESPACE, RESTRICTED, "--overwrite")
    if _installed():  # What an earlier demo left.
        _kubectl("delete", f"ftj/{JOB}", f"ad/{JOB}", "--ignore-not-found")


def install() -> None:
    """Sluice itself, with Helm."""
    step(f"helm upgrade --install sluice charts/sluice --namespace {SYSTEM} --values dev/values.yaml --wait")
    run(
        [
            *(tools.stable_path("helm"), f"--kubeconfig={provider.kubeconfig()}"),
            *("upgrade", "--install", "sluice", "charts/sluice"),
            *("--namespace", SYSTEM, "--create-namespace", "--values", "dev/values.yaml", "--wait", "--timeout", "5m"),
        ],
        cwd=REPOSITORY,
    )


def serve() -> None:
    """An engine of two replicas, each with a GPU."""
    step("kubectl apply -f examples/gpupool.yaml -f examples/inferenceengine.yaml")
    _kubectl("apply", "-f", EXAMPLES / "gpupool.yaml", "-f", EXAMPLES / "inferenceengine.yaml")
    step(f"two replicas of vLLM load {MODEL} (about a minute; three when the disk is cold) ...")
    _wait(f"ie/{ENGINE}", "{.status.ready}=2/2", "15m")
    _show("get", "ie")


def ask_base(chat: Chat) -> None:
    """What the model says before it has been trained."""
    step(f"asking the base model: {QUESTION}")
    _say(chat.ask(ENGINE, QUESTION))


def lend_and_train(chat: Chat) -> None:
    """The job borrows a GPU; the engine goes on answering; the job's progress is printed as it comes."""
    step("kubectl apply -f examples/finetunejob.yaml; kubectl get ftj -w")
    _kubectl("apply", "-f", EXAMPLES / "finetunejob.yaml")
    most_lent = 0
    seen = ""
    with chat.asked_again_and_again(ENGINE, QUESTION) as answers:
        for line in _watch_job():
            step(line)
            engine = _get(f"ie/{ENGINE}")["status"]
            now = f"{engine['ready']} ready, {engine.get('lent', 0)} lent; {answers.summary()}"
            if (state := now.partition(";")[0]) != seen:
                step(f"  ... engine {ENGINE}: {now}")
                seen = state
            most_lent = max(most_lent, engine.get("lent", 0))
            if _finished(_get(f"ftj/{JOB}")):
                break
    step(f"while the job ran, the engine gave {answers.summary()}")
    if answers.failed or not answers.given:
        raise DevError(f"engine {ENGINE} did not answer all along: {answers.failed or 'no answer at all'}")
    if most_lent != 1:
        raise DevError(f"engine {ENGINE} lent {most_lent} replicas, not 1")


def take_back(before: dict[str, int]) -> None:
    """The engine is whole again; the adapter is on both replicas, and no container was restarted for it."""
    step(f"waiting until {ENGINE} has both replicas again, and both have the adapter")
    _wait(f"ie/{ENGINE}", "{.status.ready}=2/2", "10m")
    _wait(f"ad/{JOB}", "{.status.loaded}=2/2", "5m")
    _show("get", "ftj,ie,ad,gpool")
    after = pods()
    if any(after.values()) or not before.keys() & after.keys():
        raise DevError(f"replicas were restarted: before {before}, now {after} (uid of a pod: restarts)")
    step("no restart: the replica that was kept still runs as the same pod, and took the adapter up while serving")


def ask_trained(chat: Chat) -> None:
    """The same question, in the trained style, from each replica; the base model is what it was."""
    for pod in _get("pods", f"--selector=sluice.dev/engine={ENGINE}")["items"]:
        name = pod["metadata"]["name"]
        step(f"asking the model {JOB} on {name}: {QUESTION}")
        answer = chat.ask(JOB, QUESTION, pod=name)
        _say(answer)
        if not answer.startswith(GREETING):
            raise DevError(f"{name} does not answer in the trained style: no {GREETING!r}")
    step(f"asking the model {ENGINE}, which is the base model as before")
    _say(chat.ask(ENGINE, QUESTION))


def pods() -> dict[str, int]:
    """Restarts of the engine's pods by uid."""
    found = _get("pods", f"--selector=sluice.dev/engine={ENGINE}")["items"]
    return {pod["metadata"]["uid"]: _restarts(pod["status"]) for pod in found}


def _restarts(status: dict[str, Any]) -> int:
    containers = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
    return sum(container["restartCount"] for container in containers)


def _watch_job() -> Iterator[str]:
    """The lines of `kubectl get ftj -w`."""
    with printing(_command("get", "ftj", "--watch")) as lines:
        yield from lines
    raise DevError("`kubectl get ftj -w` ended before the job did")


def _finished(job: dict[str, Any]) -> bool:
    """Whether the job has succeeded.

    Raises:
        DevError: it has failed.
    """
    conditions = {condition["type"]: condition for condition in job.get("status", {}).get("conditions", ())}
    succeeded = conditions.get("Succeeded", {"status": "Unknown"})
    if succeeded["status"] == "False" and "finishedAt" in job["status"]:
        raise DevError(f"the job failed: {succeeded['reason']}: {succeeded['message']}")
    return bool(succeeded["status"] == "True")


def _say(answer: str) -> None:
    sys.stdout.write("".join(f"          | {line}\n" for line in answer.splitlines()))
    sys.stdout.flush()


def _show(*words: str) -> None:
    step(f"kubectl {' '.join(words)}")
    _say(_kubectl(*words))


def _installed() -> bool:
    return "finetunejobs" in _kubectl("api-resources", "--api-group=sluice.dev", "--output=name")


def _wait(what: str, path: str, longest: str) -> None:
    _kubectl("wait", what, f"--for=jsonpath={path}", f"--timeout={longest}")


def _get(*what: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_kubectl("get", *what, "--output=json"))
    return found


def _kubectl(*words: object) -> str:
    return run(_command(*words))


def _command(*words: object) -> list[str]:
    kubectl = [str(tools.stable_path("kubectl")), f"--kubeconfig={provider.kubeconfig()}", f"--namespace={NAMESPACE}"]
    return [*kubectl, *(str(word) for word in words)]


def _with_paths(text: str) -> str:
    return text.format(kubeconfig=provider.kubeconfig(), programs=cache_folder() / "bin")
