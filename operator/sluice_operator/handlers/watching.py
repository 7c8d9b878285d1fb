"""What an event does: the store learns, and the queue is told whose decision may change. Events: `kopf_watch.py`."""

from collections.abc import Callable, Iterable

import kopf

from sluice_operator.handlers.resync import KIND_OF
from sluice_operator.handlers.routing import keys_for
from sluice_operator.observe.parse import Stored, Unreadable, parse, stored_key, uid_of, version_of
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key


def route_changes(
    store: Store, add: Callable[[Key], None], waits_for: Callable[[Key], Iterable[Key]] = lambda _key: ()
) -> None:
    """Have every change of the store, wherever it comes from, reconcile those whom it concerns.

    Args:
        waits_for: who waits for an object.
    """

    def changed(old: Stored | None, new: Stored | None) -> None:
        for key in keys_for(old, new, store.world(), store.links, waits_for):
            add(key)

    store.listen(changed)


def take_event(store: Store, plural: str, event: kopf.RawEvent) -> None:
    """Bring one event of a watch, or one object of kopf's own list, into the store."""
    parsed = parse(KIND_OF[plural], dict(event["object"]))
    if event["type"] == "DELETED":
        if not isinstance(parsed, Unreadable):
            store.put(parsed, seen=True)  # the last words of a pod may come only with its end
        store.remove(stored_key(parsed), uid_of(parsed), version_of(parsed))
    else:
        store.put(parsed, seen=True)
