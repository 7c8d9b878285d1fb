"""Read what every Kubernetes object has, from its JSON."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict

from sluice_api.model import within_time
from sluice_operator.observe.views import Key, Owner

Body = Mapping[str, Any]
"""An object as the API server sends it."""


class ViewMetadata(TypedDict):
    """The fields that every view has."""

    key: Key
    uid: str
    resource_version: int
    created: datetime
    deleting: bool
    owner: Owner | None
    labels: Mapping[str, str]


def metadata_of(kind: str, body: Body) -> ViewMetadata:
    """The part of a view that all kinds share."""
    metadata = body["metadata"]
    return ViewMetadata(
        key=Key(kind, metadata.get("namespace") or "", metadata["name"]),
        uid=str(metadata["uid"]),
        resource_version=int(metadata["resourceVersion"]),
        created=within_time(datetime.fromisoformat(metadata["creationTimestamp"])),
        deleting=bool(metadata.get("deletionTimestamp")),
        owner=_controller(metadata.get("ownerReferences") or ()),
        labels={str(name): str(value) for name, value in (metadata.get("labels") or {}).items()},
    )


def _controller(references: Any) -> Owner | None:
    for reference in references:
        if reference.get("controller"):
            return Owner(reference["kind"], reference["name"], reference["uid"])
    return None


def condition(status: Body, name: str, value: str) -> Mapping[str, Any]:
    """The condition of this name if it has this status; an empty map otherwise."""
    for found in status.get("conditions") or ():
        if found.get("type") == name and found.get("status") == value:
            return {"type": name, **found}
    return {}


def moment(text: object) -> datetime | None:
    """An RFC 3339 time; None for an empty text.

    Raises:
        ValueError: the text is no such time, has no zone, or is out of all bounds.
    """
    return within_time(datetime.fromisoformat(str(text))) if text else None


def noted_moment(annotations: Mapping[str, object], name: str) -> datetime | None:
    """The time in an annotation of ours; None if it is absent or no time. Others may write there too."""
    try:
        return moment(annotations.get(name))
    except ValueError:
        return None
