"""redact: puts a placeholder in the place of what looks personal or secret. It changes rows and drops none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sluice_api.data_steps import Redact, Secretive
from sluice_trainer.data.row import Row
from sluice_trainer.data.steps import shapes
from sluice_trainer.data.steps.step import map_texts

_FINDERS: Mapping[Secretive, Callable[[str, str], str]] = {
    Secretive.KEY: shapes.without_keys,
    Secretive.EMAIL: shapes.without_emails,
    Secretive.CARD: shapes.without_cards,
    Secretive.PHONE: shapes.without_phones,
}
"""In this order: a key may have an @ in it, and a card's number is longer than a telephone's."""

_BAR = "█████"


@dataclass(frozen=True)
class RedactTexts:
    """The step `redact`. It leaves the calls of tools as they are, because they must stay JSON."""

    spec: Redact
    name: str = "redact"

    def apply(self, row: Row) -> list[Row]:
        """The row with placeholders."""
        return [map_texts(row, self._redacted)]

    def hidden(self, text: str) -> str:
        """A text as it may be shown: a bar hides what the step would take out of it."""
        return self._without(text, lambda _: _BAR)

    def _redacted(self, text: str) -> str:
        return self._without(text, lambda kind: self.spec.placeholder.replace("{kind}", kind.upper()))

    def _without(self, text: str, placeholder: Callable[[Secretive], str]) -> str:
        for kind, without in _FINDERS.items():
            if kind in self.spec.kinds:
                text = without(text, placeholder(kind))
        return text
