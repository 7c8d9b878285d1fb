"""How a journey ended, without what differs from run to run: times, uids, which of two equal slots was lent."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any

from dev.faults.asked import Asked
from tests.integration.audit import Write
from tests.integration.claim_scene import ClaimScene

Body = dict[str, Any]

_OF_A_RUN = {
    "endedAt",
    "finishedAt",
    "index",
    "lastTransitionTime",
    "message",
    "nodes",
    "observedGeneration",
    "pod",
    "since",
    "startedAt",
}
_UNCOUNTED = {"leases", "events"}


@dataclass(frozen=True)
class Outcome:
    """What every run of a journey has in common."""

    end: Body
    created: dict[str, int]
    """What the operator has made, and how often."""
    deleted: list[str]
    """What it has deleted. A request that it had to repeat counts once."""


def outcome_of(scene: ClaimScene) -> Outcome:
    """What there is now, and what was made and deleted on the way."""
    writes = [w for w in scene.audit.writes(scene.namespace) if w.resource not in _UNCOUNTED]
    created = Counter(_thing(w) for w in writes if w.status == 201)
    deleted = {(w.resource, w.name): _thing(w) for w in writes if w.verb == "delete" and w.status < 300}
    return Outcome(end_of(scene), dict(sorted(created.items())), sorted(deleted.values()))


def end_of(scene: ClaimScene) -> Body:
    """The state of all that Sluice owns here."""
    now = scene.history.now
    pods = Counter(f"{family(name)} {_phase(pod)}" for name, pod in now["pods"].items())
    return {
        "finetunejobs": {
            name: _steady(body.get("status"), scene.namespace) for name, body in now["finetunejobs"].items()
        },
        "inferenceengines": {
            name: _steady(body.get("status"), scene.namespace) for name, body in now["inferenceengines"].items()
        },
        "adapters": {name: _steady(_said(body), scene.namespace) for name, body in now["adapters"].items()},
        "sizes": sorted(scene.sizes().values()),
        "jobs": dict(sorted((family(name), _condition(body)) for name, body in now["jobs"].items())),
        "pods": dict(sorted(pods.items())),
    }


def difference(expected: Body, found: Body) -> list[str]:
    """For a person whose plan has failed: - is what should be there, + what is."""
    before, after = (json.dumps(state, indent=1, sort_keys=True).splitlines() for state in (expected, found))
    return [line for line in unified_diff(before, after, lineterm="", n=2) if not line.startswith(("---", "+++"))]


def write_name(asked: Asked) -> str:
    """A write's name that is the same in every run: verb, kind, and the object's family.

    An event that is told again is a patch of the one before, if that came soon enough: of events the verb is left out.
    """
    if asked.plural == "events":
        return "tell events"
    kind = f"{asked.plural}.{asked.subresource}" if asked.subresource else asked.plural
    return f"{asked.verb} {kind} {family(asked.name)}".strip()


def family(name: str) -> str:
    """What a name says but for what is random in it: uids, suffixes of pods, which of two equal slots."""
    name = re.sub(r"^tone-[0-9a-f]+-", "tone-", name)
    name = re.sub(r"^(tone-(?:prepare|train|export)-\d+).*", r"\1", name)
    return re.sub(r"^chat-\d+(-placeholder)?.*", r"chat-N\1", name)


def _thing(write: Write) -> str:
    return f"{write.resource} {family(write.name)}"


def _phase(pod: Body) -> str:
    return "going" if "deletionTimestamp" in pod["metadata"] else str(pod["status"].get("phase", ""))


def _condition(job: Body) -> str:
    ends = [c["type"] for c in job.get("status", {}).get("conditions") or () if c["status"] == "True"]
    return "Complete" if "Complete" in ends else "Failed" if "Failed" in ends else "under way"


def _said(adapter: Body) -> Body:
    return {"spec": adapter["spec"], "status": adapter.get("status")}


def _steady(value: Any, namespace: str) -> Any:
    """A status without what differs from run to run."""
    if isinstance(value, dict):
        return {name: _steady(item, namespace) for name, item in sorted(value.items()) if name not in _OF_A_RUN}
    if isinstance(value, list):
        return _sorted(_steady(item, namespace) for item in value)
    if isinstance(value, str):
        return family(value.replace(namespace, "NAMESPACE"))
    return value


def _sorted(items: Iterable[Any]) -> list[Any]:
    return sorted(items, key=repr)
