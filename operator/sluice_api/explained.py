"""Names with their meaning and what a reader may do about it."""

from enum import StrEnum
from typing import Self


class Explained(StrEnum):
    """Each member is its name, the meaning and the next step."""

    meaning: str
    next_step: str

    def __new__(cls, name: str, meaning: str, next_step: str) -> Self:
        """A member whose value is its name, with the two sentences of its docs."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.meaning = meaning
        member.next_step = next_step
        return member

    @classmethod
    def known(cls, name: str) -> Self | None:
        """The member of that name; None when there is none."""
        return next((member for member in cls if member.value == name), None)
