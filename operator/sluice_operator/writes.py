"""Writes as data: what a decision asks for, as an ordered tuple of small values.

cluster/ brings them to the API server, dev/simulate/ plays them in memory: the order that the property tests try is the
order that runs. A process may end between any two of them, so each order has to be safe to break off anywhere.
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
    """Go on only while this very object is there and stays: a watch may be late to say that it is gone."""

    key: Key
    uid: str


@dataclass(frozen=True, slots=True)
class Create:
    """Make an object. One of its name that is ours is as good; nothing of it is changed."""

    manifest: Manifest
    else_warn: str = ""
    """What is lost if the API server refuses it, for the log: it is done without then. Empty: the refusal counts."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Have an object be as a manifest says: it is made, or changed if it is ours."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Keep:
    """Have an object that nobody watches be as a manifest says, or be gone; once a term, and when that changes."""

    manifest: Manifest
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class Annotate:
    """Set the annotations that Sluice has on an object of the user's."""

    key: Key
    uid: str
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Bind:
    """Take our gate off a pod and tie it to a node. Nominate it next: that is what keeps the node's GPU for it."""

    key: Key
    uid: str
    hostname: str
    """The node's label, which a node selector needs."""
    at: datetime


@dataclass(frozen=True, slots=True)
class Nominate:
    """Say for which node a pod is meant (KEP-5278)."""

    key: Key
    uid: str
    """Empty for a pod that was created just before; if that was refused, there is nothing to nominate."""
    node: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Set a slot's Deployment to 0 or 1."""

    key: Key
    uid: str
    size: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete this very object; one that is gone already is as good."""

    key: Key
    uid: str
    foreground: bool = False
    """Its children go first."""
    within: int | None = None
    """Seconds, for a pod that was deleted with more."""


@dataclass(frozen=True, slots=True)
class Status:
    """Replace what the operator owns of an object's status."""

    key: Key
    uid: str
    status: Manifest


@dataclass(frozen=True, slots=True)
class Event:
    """Tell people something, on the object. One that can't be written is lost."""

    key: Key
    uid: str
    level: str
    """Normal or Warning."""
    reason: str
    message: str


Write = Require | Create | Apply | Keep | Annotate | Bind | Nominate | Scale | Delete | Status | Event
Writes = tuple[Write, ...]

TELLS = (Status, Event)
"""What only tells people. It is done though something before it has failed."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A write that the API server refuses until somebody changes something; what follows it was not done."""

    write: Write
    taken: bool
    """Whether another's object has the name."""
    message: str
    """The API server's own words, or ours of a name that is taken."""


def key_of_manifest(manifest: Mapping[str, Any]) -> Key:
    """Where a manifest's object is."""
    metadata = manifest["metadata"]
    return Key(manifest["kind"], metadata.get("namespace", ""), metadata["name"])


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done for one object now."""

    writes: Writes = ()
    again_at: datetime | None = None
    """When to look again even if nothing happens."""
    ends_with: tuple[Key, ...] = ()
    """Objects whose change may end what it waits for."""
