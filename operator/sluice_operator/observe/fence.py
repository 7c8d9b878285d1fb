"""A fence per object: what raises while one of them is looked at sets that one aside, and nobody else.

Whoever looks at objects of several owners does so through `each`, or inside `looking_at`: whatever is raised there is
the fault of the innermost. Whoever decides does so inside `fenced`, which decides again without those at fault, as if
they were not there; but what their pods have stays theirs. Nowhere else in a decision is an exception caught.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePath
from traceback import extract_tb, format_exception
from types import TracebackType
from typing import Generic, TypeVar

from sluice_operator.observe.views import Key
from sluice_operator.observe.world import SetAside, World

Thing = TypeVar("Thing")


Seen = TypeVar("Seen")


Decision = TypeVar("Decision")


_MOST_TRACE = 4000


class Fault(Exception):
    """Something was raised while objects were looked at."""

    def __init__(self, *aside: SetAside) -> None:
        super().__init__("; ".join(f"{found.key}: {found.why}" for found in aside))
        self.aside = aside


class looking_at:  # noqa: N801 - read as a word: `with looking_at(key):`
    """What is raised inside the block is the fault of an object, unless it is another's already."""

    __slots__ = ("_key",)

    def __init__(self, key: Key) -> None:
        self._key = key

    def __enter__(self) -> None:
        """Nothing: what counts is how the block ends."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        """Raise a Fault in place of any other exception."""
        if isinstance(error, Exception) and not isinstance(error, Fault):
            trace = "".join(format_exception(error))[-_MOST_TRACE:]
            raise Fault(SetAside(self._key, _where_raised(error), trace)) from error


def each(things: Iterable[Thing], key: Callable[[Thing], Key], look: Callable[[Thing], Seen]) -> list[Seen]:
    """What a look at each of some things gives, in their order.

    Args:
        key: whose fault it is if the look raises.

    Raises:
        Fault: of all at which the look raised; each was looked at.
    """
    seen: list[Seen] = []
    aside: list[SetAside] = []
    for thing in things:
        try:
            with looking_at(key(thing)):
                seen.append(look(thing))
        except Fault as fault:
            aside += fault.aside
    if aside:
        raise Fault(*aside)
    return seen


@dataclass(frozen=True, slots=True)
class Fenced(Generic[Decision]):
    """What was decided, and for whom nothing could be."""

    decision: Decision | None
    """None if the object itself, for which it was to be decided, is at fault."""
    aside: tuple[SetAside, ...]
    """Whom this decision has set aside; those of earlier ones are the World's."""


def fenced(world: World, mine: Key, decide: Callable[[World], Decision]) -> Fenced[Decision]:
    """Decide for one object, from a World without those that are set aside."""
    found: dict[Key, SetAside] = {}
    while True:
        try:
            with looking_at(mine):
                return Fenced(decide(world.without({*world.set_aside, *found} - {mine})), tuple(found.values()))
        except Fault as fault:
            fresh = {aside.key: aside for aside in fault.aside if aside.key not in found}
            if not fresh:  # it is blamed though it was not there: then the decision itself is at fault
                fresh = {mine: SetAside(mine, fault.aside[0].why)}
            found |= fresh
            if mine in found:
                return Fenced(None, tuple(found.values()))


def behind_a_fence(world: World, mine: Key, decide: Callable[[World], Decision]) -> Decision:
    """The decision alone, for whoever tells nobody of those that are set aside.

    Raises:
        Fault: none can be made.
    """
    found = fenced(world, mine, lambda seen: (decide(seen),))
    if found.decision is None:
        raise Fault(*found.aside)
    return found.decision[0]


def _where_raised(error: Exception) -> str:
    """What was raised, and where in Sluice."""
    frames = [frame for frame in extract_tb(error.__traceback__) if "sluice_" in frame.filename]
    where = f" ({'/'.join(PurePath(frames[-1].filename).parts[-2:])}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:300]}{where}"
