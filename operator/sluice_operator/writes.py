"""Writes as data: what a decision asks for, as an ordered tuple of small values.

cluster/ sends them to the API server, dev/simulate/ plays them in memory: so the property tests try the order that
runs. A process may end between any two writes, so each order must be safe wherever it breaks off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sluice_operator.observe.views import Key

Manifest = dict[str, Any]
"""A Kubernetes object as the API server takes it."""


@dataclass(frozen=True, slots=True)
class Require:
    """Go on only if this very object exists and is not being deleted. A watch may be late to say so."""

    key: Key
    uid: str


@dataclass(frozen=True, slots=True)
class Create:
    """Make an object. If one of its name exists that is ours, that one is left unchanged and counts as made."""

    manifest: Manifest
    else_warn: str = ""
    """What is lost if the API server refuses it, for the log; later writes go on. Empty: a refusal ends the writes."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Bring an object to what a manifest says: it is made, or changed if it is ours."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Keep:
    """Make, change or delete an object that is not watched, so that it is as the manifest says.

    It is written once in each term, and again when the manifest changes.
    """

    manifest: Manifest
    wanted: bool = True
    """False: the object must not exist."""


@dataclass(frozen=True, slots=True)
class Annotate:
    """Set Sluice's annotations on an object that a user made."""

    key: Key
    uid: str
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Bind:
    """Take Sluice's gate off a pod and tie it to a node. Nominate it next: that keeps the node's GPU for it."""

    key: Key
    uid: str
    hostname: str
    """The node's hostname label, which a node selector needs."""
    at: datetime
    """The moment, for the annotation sluice.dev/bound-at."""


@dataclass(frozen=True, slots=True)
class Nominate:
    """Say which node a pod is meant for (KEP-5278)."""

    key: Key
    uid: str
    """Empty for a pod that an earlier write of the tuple makes; if that was refused, nothing is nominated."""
    node: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Set the replicas of a slot's Deployment to 0 or 1."""

    key: Key
    uid: str
    size: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete this very object. If it is gone already, that is fine."""

    key: Key
    uid: str
    foreground: bool = False
    """Whether its children are deleted first."""
    within: int | None = None
    """A grace period in seconds, for a pod that was deleted with a longer one."""


@dataclass(frozen=True, slots=True)
class Status:
    """Replace what the operator owns of an object's status."""

    key: Key
    uid: str
    status: Manifest


@dataclass(frozen=True, slots=True)
class Event:
    """Tell people something on an object. An event that can't be written is lost."""

    key: Key
    uid: str
    level: str
    """Normal or Warning."""
    reason: str
    message: str


Write = Require | Create | Apply | Keep | Annotate | Bind | Nominate | Scale | Delete | Status | Event
Writes = tuple[Write, ...]

TELLS = (Status, Event)
"""Writes that only tell people. They are done even after an ApiError that is no refusal."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A write that the API server refuses until somebody changes something. The writes after it were not done."""

    write: Write
    taken: bool
    """Whether the name is taken by an object that is not ours."""
    message: str
    """The API server's message, or ours if the name is taken."""


def key_of_manifest(manifest: Mapping[str, Any]) -> Key:
    """Key of a manifest's object."""
    metadata = manifest["metadata"]
    return Key(manifest["kind"], metadata.get("namespace", ""), metadata["name"])


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for one object now."""

    writes: Writes = ()
    again_at: datetime | None = None
    """When to look again even if nothing happens."""
    ends_with: tuple[Key, ...] = ()
    """A change of one of these objects may end the wait."""
