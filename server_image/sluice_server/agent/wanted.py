"""What the agent reads of custom resources: the few fields it needs, whatever else a newer operator writes.

An agent lives as long as its pod and outlives upgrades of operator and CRDs, so it ignores what it does not know.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from sluice_api.inferenceengine import ASLEEP, AWAKE, SlotState
from sluice_api.model import Name

Body = dict[str, Any]
_NAME: TypeAdapter[str] = TypeAdapter(Name)


class Unreadable(ValueError):
    """An object that is not as its schema says, or whose name no report could carry."""


@dataclass(frozen=True)
class Key:
    """One version of one Adapter's spec."""

    uid: str
    generation: int


@dataclass(frozen=True)
class WantedAdapter:
    """An Adapter of this engine."""

    name: str
    key: Key
    created: str
    uri: str
    digest: str | None

    @property
    def age_order(self) -> tuple[str, str]:
        """Oldest first; RFC 3339 in UTC sorts as text."""
        return self.created, self.name


def adapter_for(engine: str, body: Body) -> WantedAdapter | None:
    """The Adapter, or None where it belongs to another engine or is being deleted.

    Raises:
        Unreadable: it was stored under a schema that this agent can't read.
    """
    try:
        metadata, spec = body["metadata"], body["spec"]
        if spec["engine"] != engine or metadata.get("deletionTimestamp"):
            return None
        return WantedAdapter(
            name=_NAME.validate_python(metadata["name"]),
            key=Key(metadata["uid"], int(metadata.get("generation", 0))),
            created=metadata["creationTimestamp"],
            uri=spec["source"]["uri"],
            digest=spec["source"].get("digest"),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Unreadable(f"Adapter is not as its schema says: {error!r}") from error


def must_drain(engine: Body | None, index: int, pod: str) -> bool:
    """Whether the engine's status says that this pod is to finish its requests and take no more.

    A slot that drained, was lent and has a new pod names that pod or none, so a name that is not ours speaks of
    another pod. Once a slot is Lent or Stopping only our own name can mean us.
    """
    said = _said(engine, index)
    named = said.get("pod") or ""
    match said.get("state"):
        case SlotState.DRAINING:
            return named in ("", pod)
        case SlotState.LENT | SlotState.STOPPING | SlotState.SLEEPING | SlotState.RECLAIMING:
            return bool(named == pod)
    return False


def must_sleep(engine: Body | None, index: int) -> bool | None:
    """Whether the engine's status says that the slot's GPUs are another's (True) or its own (False); None for neither.

    Whatever pod the status names: one that has come in its place has the same GPUs.
    """
    state = _said(engine, index).get("state")
    return True if state in ASLEEP else False if state in AWAKE else None


def is_lent(engine: Body | None, index: int) -> bool:
    """Whether the operator knows that the slot sleeps, and has lent it."""
    return _said(engine, index).get("state") in ASLEEP - {SlotState.SLEEPING}


def _said(engine: Body | None, index: int) -> Body:
    """What the engine's status says of a slot; empty where it says nothing."""
    slots = ((engine or {}).get("status") or {}).get("slots") or []
    return next((slot for slot in slots if slot.get("index") == index), {})
