"""What the API server has refused to make for engines: memory only, as a new leader may try it at once."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sluice_api.reasons import Reason
from sluice_operator.observe.views import Key


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the API server has refused to make for an engine."""

    reason: Reason
    message: str
    until: datetime
    """When it is tried again."""


@dataclass
class Refusals:
    """By the engine."""

    of: dict[Key, Refusal] = field(default_factory=dict)
    """Those that are not tried again yet."""
    pauses: dict[Key, timedelta] = field(default_factory=dict)
    """How long each waited last."""

    def put(self, engine: Key, refusal: Refusal | None) -> None:
        """Keep the newest, or none: it may try again."""
        self.of.pop(engine, None)
        if refusal is not None:
            self.of[engine] = refusal

    def forget(self, engine: Key) -> None:
        """It is gone."""
        self.of.pop(engine, None)
        self.pauses.pop(engine, None)
