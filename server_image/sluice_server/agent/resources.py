"""The fields that the agent reads of InferenceEngines and Adapters.

An agent lives as long as its pod and outlives upgrades of operator and CRDs, so it ignores fields it does not know.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from sluice_api.inferenceengine import SlotState
from sluice_api.model import Name

Body = dict[str, Any]
_NAME: TypeAdapter[str] = TypeAdapter(Name)


class Unreadable(ValueError):
    """An object that does not match its schema, or has a name that a report does not allow."""


@dataclass(frozen=True)
class Key:
    """One generation of one Adapter's spec."""

    uid: str
    generation: int


@dataclass(frozen=True)
class WantedAdapter:
    """An Adapter of this engine, as its spec asks for it."""

    name: str
    key: Key
    created: str
    uri: str
    digest: str | None

    @property
    def age_order(self) -> tuple[str, str]:
        """Sorts the oldest first, as RFC 3339 in UTC sorts as text."""
        return self.created, self.name


def adapter_for(engine: str, body: Body) -> WantedAdapter | None:
    """The Adapter if it belongs to this engine; None if it does not, or is being deleted.

    Raises:
        Unreadable: the Adapter has a schema that this agent can't read.
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


def slot_status(engine: Body | None, index: int) -> Body:
    """One slot of the engine's status.slots; empty if the status does not have it."""
    slots = ((engine or {}).get("status") or {}).get("slots") or []
    return next((slot for slot in slots if slot.get("index") == index), {})


def must_drain(engine: Body | None, index: int, pod: str) -> bool:
    """Whether the engine's status says that this pod has to finish its requests and take no more.

    The status of a slot names a pod or none. A slot that drained, was lent and has a new pod names the new one or none,
    so another pod's name is never about this one. A slot that is Lent or Stopping means this pod only by its name.
    """
    status = slot_status(engine, index)
    named = status.get("pod") or ""
    match status.get("state"):
        case SlotState.DRAINING:
            return named in ("", pod)
        case SlotState.LENT | SlotState.STOPPING | SlotState.SLEEPING | SlotState.RECLAIMING:
            return bool(named == pod)
    return False
