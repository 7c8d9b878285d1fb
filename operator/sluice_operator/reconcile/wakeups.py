"""Who is woken when an object changes because it waits for that: what its obstacles end with."""

from collections.abc import Iterable, Iterator

from sluice_operator.observe.views import Key


class Wakeups:
    """By the object that is waited for, who waits. Memory of one process: each decision says anew what it waits for."""

    def __init__(self) -> None:
        self._waiting: dict[Key, set[Key]] = {}
        self._for: dict[Key, frozenset[Key]] = {}

    def wait(self, who: Key, things: Iterable[Key]) -> None:
        """Somebody waits for these objects from now on, and for no others. Without a name any of a namespace will do,
        without a namespace any of a kind.
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
        """Who waits for an object, or for any like it."""
        for wanted in {thing, Key(thing.kind, thing.namespace, ""), Key(thing.kind, "", "")}:
            yield from self._waiting.get(wanted, ())
