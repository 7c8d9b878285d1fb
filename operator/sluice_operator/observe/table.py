"""The objects of one kind that the store holds, and what it knows of objects that it does not hold."""

import logging
import math
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sluice_operator.observe.parse import Stored, Unreadable
from sluice_operator.observe.views import Key

logger = logging.getLogger(__name__)

AnyStored = TypeVar("AnyStored", bound=Stored)


@dataclass
class Table(Generic[AnyStored]):
    """The objects of one kind."""

    objects: dict[Key, AnyStored] = field(default_factory=dict)
    listed: int = 0
    """The resourceVersion of the newest full list."""
    newest: int = 0
    """The newest resourceVersion that was ever seen of the kind."""
    dead: dict[str, float] = field(default_factory=dict)
    """Uids of deleted objects, each with the version of its deletion; infinite if that is unknown."""
    unreadable: dict[Key, Unreadable] = field(default_factory=dict)

    def forget_dead(self, list_version: int) -> None:
        """Forget deletions before a list: the list's version keeps those objects out from now on.

        A deletion of unknown version may be later than this list, but not than the next.
        """
        self.dead = {
            uid: list_version if version == math.inf else version
            for uid, version in self.dead.items()
            if version > list_version
        }

    def set_aside(self, obj: Unreadable) -> None:
        """Note an object that can't be read, and log each fault once. Its last readable state stays in `objects`."""
        known = self.unreadable.get(obj.key)
        self.unreadable[obj.key] = obj
        if known is None or (known.uid, known.error) != (obj.uid, obj.error):
            logger.error(
                "an object cannot be read and is left alone", extra={"object": str(obj.key), "error": obj.error}
            )
