"""Aliases: the public names of adapters, and the version inside vLLM behind each.

Only the class `Aliases` knows the mapping, so that a proxy in front of the engine may hold it one day.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sluice_server.control import Unavailable


@dataclass(frozen=True)
class Target:
    """Where a request goes: the name inside vLLM, and the public name that the client knows."""

    inner: str
    public: str


@dataclass(frozen=True)
class ErrorResponse:
    """Why a request is not served, as an OpenAI error: status, type, message and the field at fault."""

    status: int
    type: str
    message: str
    param: str = "model"


class Aliases:
    """The version behind each public name."""

    def __init__(self, base: str, served_names: Collection[str] = ()) -> None:
        """Take the base model's name inside vLLM, and more public names for it."""
        self.base = Target(base, base)
        self._names = {name: Target(base, name) for name in (base, *served_names)}
        self._versions: Mapping[str, str] = {}
        self._unavailable: Mapping[str, Unavailable] = {}

    def replace(self, versions: Mapping[str, str], unavailable: Mapping[str, Unavailable]) -> None:
        """Use these names for every request from now on."""
        self._versions, self._unavailable = versions, unavailable

    def is_base(self, name: object) -> bool:
        """Whether this is a public name of the base model."""
        return isinstance(name, str) and name in self._names

    def resolve(self, name: str) -> Target | ErrorResponse:
        """Where a request for this name goes. A client can't name a version, which may be unloaded at any moment."""
        if base := self._names.get(name):
            return base
        if version := self._versions.get(name):
            return Target(version, name)
        if why := self._unavailable.get(name):
            message = f"The model `{name}` is unavailable: {why.reason}: {why.message}"
            return ErrorResponse(503, "ServiceUnavailableError", message)
        valid = ", ".join([*self._names, *self._versions])
        return ErrorResponse(404, "NotFoundError", f"The model `{name}` does not exist. Valid aliases: {valid}.")

    def public_models(self, models: Any) -> Any:
        """The body of /v1/models with public names in place of versions; a card's `root` is the version."""
        if "data" not in models:
            return models  # an error body
        names = {version: alias for alias, version in self._versions.items()}
        cards = []
        for card in models["data"]:
            if card.get("id") == self.base.inner:
                cards += [card | {"id": name} for name in self._names]
            elif alias := names.get(card.get("id")):
                cards.append(card | {"id": alias, "root": card["id"]})
        return models | {"data": cards}
