"""A fence around each object: if looking at an object raises, only that object is set aside.

Code that looks at objects of several owners does so through `each` or inside `looking_at`. What is raised there is the
fault of the object of the innermost one. Code that decides does so inside `fenced`, which decides again as if the
objects at fault were not there; what their pods have stays theirs. Nowhere else does a decision catch an exception.
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
    """Looking at some objects raised something."""

    def __init__(self, *aside: SetAside) -> None:
        super().__init__("; ".join(f"{found.key}: {found.why}" for found in aside))
        self.aside = aside


class looking_at:  # noqa: N801 - read as a word: `with looking_at(key):`
    """An exception inside the block is the fault of this object, unless it is another object's fault already."""

    __slots__ = ("_key",)

    def __init__(self, key: Key) -> None:
        self._key = key

    def __enter__(self) -> None:
        """Do nothing: what counts is how the block ends."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        """Raise a Fault in place of any other exception."""
        if isinstance(error, Exception) and not isinstance(error, Fault):
            raise Fault(_set_aside(self._key, error)) from error


def each(things: Iterable[Thing], key: Callable[[Thing], Key], look: Callable[[Thing], Seen]) -> list[Seen]:
    """Look at each thing; return what each look gave, in their order.

    Args:
        key: the object at fault if the look at a thing raises.

    Raises:
        Fault: of all objects at fault. All things were looked at by then.
    """
    seen: list[Seen] = []
    aside: list[SetAside] = []
    for thing in things:
        try:
            seen.append(look(thing))
        except Fault as fault:
            aside += fault.aside
        except Exception as error:  # noqa: BLE001 - it becomes a Fault below; no block for each of thousands of things
            aside.append(_set_aside(key(thing), error))
    if aside:
        raise Fault(*aside)
    return seen


@dataclass(frozen=True, slots=True)
class Fenced(Generic[Decision]):
    """What was decided, and which objects were set aside for it."""

    decision: Decision | None
    """None if the object that it was made for is at fault."""
    aside: tuple[SetAside, ...]
    """Objects that this decision has set aside, without those that the World has set aside already."""


def fenced(world: World, mine: Key, decide: Callable[[World], Decision]) -> Fenced[Decision]:
    """Decide for one object, from a World without the objects that are set aside.

    Args:
        mine: the object. It is looked at even if the World has set it aside.
    """
    found: dict[Key, SetAside] = {}
    while True:
        try:
            with looking_at(mine):
                return Fenced(decide(world.without({*world.set_aside, *found} - {mine})), tuple(found.values()))
        except Fault as fault:
            fresh = {aside.key: aside for aside in fault.aside if aside.key not in found}
            if not fresh:  # all of them were left out already: then the decision itself is at fault
                fresh = {mine: SetAside(mine, fault.aside[0].why)}
            found |= fresh
            if mine in found:
                return Fenced(None, tuple(found.values()))


def behind_a_fence(world: World, mine: Key, decide: Callable[[World], Decision]) -> Decision:
    """The decision of `fenced` alone, for callers that do not report which objects were set aside.

    Raises:
        Fault: no decision can be made.
    """
    found = fenced(world, mine, lambda seen: (decide(seen),))
    if found.decision is None:
        raise Fault(*found.aside)
    return found.decision[0]


def _set_aside(key: Key, error: Exception) -> SetAside:
    trace = "".join(format_exception(error))[-_MOST_TRACE:]
    return SetAside(key, _where_raised(error), trace)


def _where_raised(error: Exception) -> str:
    """What was raised, and the file and line of Sluice's where it was."""
    frames = [frame for frame in extract_tb(error.__traceback__) if "sluice_" in frame.filename]
    where = f" ({'/'.join(PurePath(frames[-1].filename).parts[-2:])}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:300]}{where}"
