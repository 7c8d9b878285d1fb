"""Is an object ours that has the name of one that we would make? An object that others made is never taken over."""

from collections.abc import Mapping
from typing import Any

from sluice_api.meta import GROUP
from sluice_operator.cluster.errors import NameTaken, Outdated
from sluice_operator.observe.views import Key

Body = Mapping[str, Any]


def require_ours(key: Key, manifest: Body, there: Body) -> None:
    """Return only if the existing object is what the manifest would make: it has the same controller.

    Our labels count too if only they say who owns the object (an Adapter has no controller), and if the object could
    not be found without them (a stage's Job). Others may have fewer labels, from an older version of Sluice.

    Raises:
        NameTaken: it is somebody else's.
        Outdated: its controller is a predecessor of the same name, and the garbage collector will delete it.
    """
    mine, theirs = controller(manifest), controller(there)
    same = mine.get("uid") == theirs.get("uid")
    by_labels = not mine or key.kind == "Job"
    if same and not (by_labels and _labels(manifest).items() - _labels(there).items()):
        return
    if mine and not same and _place(mine) == _place(theirs) and not there["metadata"].get("deletionTimestamp"):
        raise Outdated(f"{key} is still that of the {_place(mine)} before")
    remedy = f"or use another name for the {mine['kind']}" if mine else "or use another name"
    raise NameTaken(f"{key.kind} {key.name} is there already, and {_maker(theirs, there)}. Delete it, {remedy}.")


def controller(body: Body) -> Mapping[str, str]:
    """The owner reference of an object's controller; empty if it has none."""
    owners = body["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), {})


def _place(owner: Mapping[str, str]) -> str:
    return f"{owner.get('kind')} {owner.get('name')}"


def _labels(body: Body) -> dict[str, str]:
    """The labels by which Sluice finds its own objects."""
    labels = body["metadata"].get("labels") or {}
    return {name: value for name, value in labels.items() if name.startswith(f"{GROUP}/")}


def _maker(owner: Mapping[str, str], there: Body) -> str:
    """Who made it, as far as it says so, as the end of a sentence."""
    if owner:
        return f"belongs to {_place(owner)}"
    managers = there["metadata"].get("managedFields") or ()
    first: Mapping[str, str] = min(managers, key=lambda field: str(field.get("time") or ""), default={})
    return f"was made by {first['manager']}" if first.get("manager") else "is not Sluice's"
