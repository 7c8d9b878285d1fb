"""Hand-over: the time from a claim until its trainer is bound to the GPU of a lent engine slot.

The slot has no request in flight (drainTimeoutSeconds: 0), and its pod is gone as soon as it is told to end. So the
figures are what Sluice, the controllers and the scheduler add to a drain. The goal is that the operator adds at most
250 ms. Meanwhile strangers' pods of priority 0 wait for any GPU. If one of them is bound before the trainer, that is
a theft at the hand-over. If one is bound before the slot's own pod, once training has ended, that is a theft at the
return.
"""

import asyncio
import sys
from collections.abc import Callable
from itertools import pairwise

from tests.bench.setting import HEAD, Setting, milliseconds, setting
from tests.integration.claim_scene import Body, borrowed_slots, is_bindable, is_gated
from tests.integration.history import Version

LOANS = 30
THIEVES = 5

STEPS = ("claimed", "pod made", "draining", "ungated", "nominated", "slot stopped", "slot gone", "bound")
WHOSE = {
    "pod made": "Job controller: the pod is made",
    "draining": "operator: proof, the word that the slot drains",
    "ungated": "operator: drained, gate off and node selector on",
    "nominated": "operator: node nominated",
    "slot stopped": "operator: slot to 0",
    "slot gone": "Deployment controller, fake kubelet: slot's pod gone",
    "bound": "scheduler: trainer bound",
}
OPERATORS = ("draining", "ungated", "nominated", "slot stopped")


def stranger(name: str) -> Body:
    """A pod that takes any GPU."""
    container = {"name": "main", "image": "nothing", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    return {"metadata": {"name": name, "labels": {"thief": "yes"}}, "spec": {"containers": [container]}}


def moments(versions: list[Version], job: str, slot: str) -> dict[str, float] | None:
    """When each step of a loan was seen; None while one is missing: the kinds' watches do not wait for each other."""

    def draining(body: Body) -> bool:
        return any(s["state"] == "Draining" for s in body.get("status", {}).get("slots", []))

    def its(body: Body) -> bool:
        return bool(body["metadata"].get("labels", {}).get("sluice.dev/job") == job)

    def ended(version: Version) -> bool:
        return version.gone or version.body["status"].get("phase") in ("Succeeded", "Failed")

    tests: dict[str, Callable[[Version], bool]] = {
        "claimed": lambda v: v.plural == "jobs" and its(v.body),
        "pod made": lambda v: v.plural == "pods" and its(v.body),
        "draining": lambda v: v.plural == "inferenceengines" and draining(v.body),
        "ungated": lambda v: v.plural == "pods" and its(v.body) and not is_gated(v.body),
        "nominated": lambda v: v.plural == "pods" and its(v.body) and is_bindable(v.body),
        "slot stopped": lambda v: v.plural == "deployments" and v.name == slot and not v.body["spec"]["replicas"],
        "slot gone": lambda v: v.plural == "pods" and v.name.startswith(f"{slot}-") and ended(v),
        "bound": lambda v: v.plural == "pods" and its(v.body) and bool(v.body["spec"].get("nodeName")),
    }
    seen = {step: next((v.at for v in versions if tests[step](v)), None) for step in STEPS}
    return {step: at for step, at in seen.items() if at is not None} if None not in seen.values() else None


async def loan(here: Setting, number: int) -> tuple[dict[str, float], bool, bool]:
    """One loan and its return: its moments, whether its GPU was stolen at the hand-over, whether at the return."""
    scene, name = here.scene, f"job-{number}"
    await scene.serves(2)
    await thieves_wait(here, number)
    begin = len(scene.history.versions)
    await scene.job(name)
    await scene.running(name)
    stolen = bool(caught(here))
    (slot,) = borrowed_slots(scene.stage_jobs(name))
    seen = await scene.history.until(lambda: moments(scene.history.versions[begin:], name, slot), "the loan is whole")
    await scene.finishes(name)
    await scene.history.until(lambda: scene.ready() == 2 or caught(here), "somebody has the GPU")
    stolen_later = bool(caught(here))
    for thief in range(THIEVES):
        await here.kube.call("DELETE", f"{pods(here)}/thief-{number}-{thief}", {"gracePeriodSeconds": 0})
    return seen, stolen, stolen_later


async def thieves_wait(here: Setting, number: int) -> None:
    """Have strangers' pods wait for a GPU."""
    for thief in range(THIEVES):
        await here.kube.call("POST", pods(here), stranger(f"thief-{number}-{thief}"))

    def all_wait() -> bool:
        return sum("conditions" in pod["status"] for pod in thieves(here)) == THIEVES

    await here.scene.history.until(all_wait, "the thieves wait")


def thieves(here: Setting) -> list[Body]:
    return [pod for name, pod in here.scene.history.now["pods"].items() if name.startswith("thief-")]


def caught(here: Setting) -> list[Body]:
    """Thieves that have a GPU."""
    return [pod for pod in thieves(here) if pod["spec"].get("nodeName")]


def pods(here: Setting) -> str:
    return f"/api/v1/namespaces/{here.scene.namespace}/pods"


async def main() -> None:
    """Print the table."""
    async with setting() as here:
        await here.nodes.add("node-0", gpus=2, cpu="64")
        operator = here.start()
        await operator.leads()
        await here.scene.engine("chat", replicas=2)
        await here.scene.serves(2)
        loans = [await loan(here, number) for number in range(LOANS + 1)][1:]
    seen = [moment for moment, _, _ in loans]
    lines = [HEAD, milliseconds("claim to trainer bound", (m["bound"] - m["claimed"] for m in seen))]
    spent = [{step: m[step] - m[before] for before, step in pairwise(STEPS)} for m in seen]
    lines.append(milliseconds("of this the operator", (sum(s[step] for step in OPERATORS) for s in spent)))
    lines += [milliseconds(f"  {whose}", (s[step] for s in spent)) for step, whose in WHOSE.items()]
    lines.append(f"{THIEVES} pods waiting; thefts at the hand-over: {sum(stolen for _, stolen, _ in loans)} of {LOANS}")
    lines.append(f"{THIEVES} pods waiting; thefts at the return: {sum(stolen for _, _, stolen in loans)} of {LOANS}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
