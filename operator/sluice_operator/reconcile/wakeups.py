"""Who waits for which object? Those with an obstacle that its change may end; they are woken by it."""

from collections.abc import Iterable, Iterator

from sluice_operator.observe.views import Key


class Wakeups:
    """For each object, who waits for it. Kept by one process: each decision says again what its object waits for."""

    def __init__(self) -> None:
        self._waiting: dict[Key, set[Key]] = {}
        self._for: dict[Key, frozenset[Key]] = {}

    def wait(self, who: Key, things: Iterable[Key]) -> None:
        """Record that `who` waits for these objects from now on, and for no others.

        A key without a name stands for any object of the namespace; without a namespace too, for any of the kind.
        """
        wanted, before = frozenset(things), self._for.pop(who, frozenset())
        for thing in before - wanted:
            self._waiting[thing].discard(who)
            if not self._waiting[thing]:
                del self._waiting[thing]
        for thing in wanted - before:
            self._waiting.setdefault(thing, set()).add(who)
        if wanted:
            self._for[who] = wanted

    def of(self, thing: Key) -> Iterator[Key]:
        """Who waits for this object, or for any object of its namespace or kind."""
        for wanted in {thing, Key(thing.kind, thing.namespace, ""), Key(thing.kind, "", "")}:
            yield from self._waiting.get(wanted, ())
