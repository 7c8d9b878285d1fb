"""Public names of adapters and the versions behind them.

The only class that knows the mapping: a proxy in front of the engine may hold it one day in the middleware's place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sluice_server.control import Unavailable


@dataclass(frozen=True)
class Served:
    """The name inside vLLM that a request goes to, and the name that the client knows."""

    inner: str
    public: str


@dataclass(frozen=True)
class Refused:
    """A name that is not served, in the words of an OpenAI error."""

    status: int
    type: str
    message: str
    param: str = "model"


class Aliases:
    """Which version answers to which public name."""

    def __init__(self, base: str) -> None:
        self.base = Served(base, base)
        self._versions: Mapping[str, str] = {}
        self._unavailable: Mapping[str, Unavailable] = {}

    def replace(self, versions: Mapping[str, str], unavailable: Mapping[str, Unavailable]) -> None:
        """Every request from now on meets these names."""
        self._versions, self._unavailable = versions, unavailable

    def resolve(self, name: str) -> Served | Refused:
        """Where a request for this name goes. A version is nobody's to name: it may be gone at any moment."""
        if name == self.base.public:
            return self.base
        if version := self._versions.get(name):
            return Served(version, name)
        if why := self._unavailable.get(name):
            message = f"The model `{name}` is unavailable: {why.reason}: {why.message}"
            return Refused(503, "ServiceUnavailableError", message)
        valid = ", ".join([self.base.public, *self._versions])
        return Refused(404, "NotFoundError", f"The model `{name}` does not exist. Valid aliases: {valid}.")

    def public_models(self, models: Any) -> Any:
        """The answer of /v1/models with public names; `root` says which version answers."""
        if "data" not in models:
            return models  # An error of vLLM's.
        names = {version: alias for alias, version in self._versions.items()}
        cards = []
        for card in models["data"]:
            if card.get("id") == self.base.inner:
                cards.append(card)
            elif alias := names.get(card.get("id")):
                cards.append(card | {"id": alias, "root": card["id"]})
        return models | {"data": cards}
