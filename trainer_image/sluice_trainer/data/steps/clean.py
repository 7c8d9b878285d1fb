"""clean: makes texts regular. It changes rows and drops none."""

import re
from dataclasses import dataclass

from sluice_api.data_steps import Clean
from sluice_trainer.data.row import Row
from sluice_trainer.data.steps.markup import without_markup
from sluice_trainer.data.steps.step import map_texts
from sluice_trainer.data.steps.unicode_form import normalised

_LINE_BREAK = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f]"  # control characters
    "|[\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"  # of no width: spaces, directions, byte order marks
    "|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]++"  # tags, but for those that make a flag
)
_JOINER = re.compile(
    "(?<![\u0600-\u08ff\u0900-\u109f\u1780-\u18af\ufe0f\u2190-\u2bff\U0001f000-\U0001faff])[\u200c\u200d]"
)
"""Joiners, but where they are spelling (Arabic, Persian, the scripts of India and around) or part of an emoji."""
_SPACES = re.compile(r"(?<=\S)[^\S\n]{2,}+")
_EMPTY_LINES = re.compile(r"\n{3,}+")


@dataclass(frozen=True)
class CleanTexts:
    """The step `clean`."""

    spec: Clean
    name: str = "clean"

    def apply(self, row: Row) -> list[Row]:
        """The row with regular texts."""
        return [map_texts(row, self._cleaned)]

    def _cleaned(self, text: str) -> str:
        if self.spec.markup == "Remove":
            text = without_markup(text)
        if self.spec.unicode != "Keep":
            text = normalised(self.spec.unicode, text)
        if self.spec.control_characters == "Remove":
            visible = _without_control_characters(text)
            if visible != text and self.spec.unicode != "Keep":  # a mark may now be beside its letter
                visible = normalised(self.spec.unicode, visible)
            text = visible
        if self.spec.whitespace != "Keep":
            text = _trimmed(text)
        if self.spec.whitespace == "Collapse":
            text = _SPACES.sub(" ", text)
        return text


def _without_control_characters(text: str) -> str:
    return _JOINER.sub("", _INVISIBLE.sub("", _LINE_BREAK.sub("\n", text)))


def _trimmed(text: str) -> str:
    return _EMPTY_LINES.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()
