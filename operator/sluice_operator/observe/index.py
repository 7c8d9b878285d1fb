"""Groups of objects, kept up to date as objects come and go, so that no reader scans ten thousand of them."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

from sluice_operator.observe.views import Key

Group = TypeVar("Group", bound=Hashable)
Member = TypeVar("Member")


class Index(Generic[Group, Member]):
    """Objects by what they have in common. An object may be in several groups or in none."""

    def __init__(self, groups_of: Callable[[Member], Iterable[Group]]) -> None:
        self._groups_of = groups_of
        self._groups: dict[Group, dict[Key, Member]] = {}
        self._shown: dict[Group, Mapping[Key, Member]] = {}
        self.groups: Mapping[Group, Mapping[Key, Member]] = MappingProxyType(self._shown)

    def change(self, key: Key, old: Member | None, new: Member | None) -> None:
        """Move an object from the groups that it was in to those that it belongs to now.

        Args:
            old: the object as it was; None if it is new.
            new: the object as it is; None if it is gone.
        """
        before = () if old is None else tuple(self._groups_of(old))
        after = () if new is None else tuple(self._groups_of(new))
        for group in before:
            if group not in after:
                self._leave(group, key)
        if new is not None:
            for group in after:
                if group not in self._groups:
                    self._groups[group] = {}
                    self._shown[group] = MappingProxyType(self._groups[group])
                self._groups[group][key] = new

    def _leave(self, group: Group, key: Key) -> None:
        members = self._groups[group]
        del members[key]
        if not members:
            del self._groups[group], self._shown[group]
