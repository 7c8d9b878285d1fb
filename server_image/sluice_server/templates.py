"""Which chat template a request is rendered with: the engine's, or that of its adapter.

vLLM has one template for the base model and all its adapters. An adapter that was trained with another one has it in
its folder, where the agent has put it (agent/adapter_cache.py), and the middleware writes it into each request for the
adapter. A client can't send one: it would be a program that runs in vLLM.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sluice_api.artifacts import CHAT_TEMPLATE
from sluice_server.aliases import ErrorResponse, Target

_FIELD = "chat_template"
_KEYWORDS = "chat_template_kwargs"
_WITHOUT_FIELD = frozenset({"/v1/responses", "/v1/messages", "/v1/messages/count_tokens"})
"""Routes that render turns, and whose body has no field for a template."""
_TURNS = "messages"


class AdapterTemplates:
    """The chat templates of versions, as far as they have one of their own."""

    def __init__(self, adapters: Path) -> None:
        """`adapters` has a folder for each version."""
        self._adapters = adapters
        self._known: dict[str, str | None] = {}

    def of(self, version: str) -> str | None:
        """The template of a version; None if it is the engine's. A version's folder never changes."""
        if version not in self._known:
            file = self._adapters / version / CHAT_TEMPLATE
            self._known[version] = file.read_text(encoding="utf-8") if file.is_file() else None
        return self._known[version]

    def keep(self, versions: Collection[str]) -> None:
        """Forget all other versions."""
        self._known = {version: text for version, text in self._known.items() if version in versions}


def template_of_client(request: Mapping[str, Any]) -> ErrorResponse | None:
    """The error for a request that brings a chat template; None if it has none."""
    keywords = request.get(_KEYWORDS)
    if request.get(_FIELD) is None and not (isinstance(keywords, dict) and keywords.get(_FIELD) is not None):
        return None
    message = (
        "A chat template in a request is not used. Leave it out: the engine has model.chatTemplate in its spec, and an "
        "adapter the one that it was trained with."
    )
    return ErrorResponse(400, "BadRequestError", message, _FIELD)


def with_template(request: Any, path: str, target: Target, template: str | None) -> Any:
    """The request with the template of its adapter, or why the route can't use that."""
    if template is None or not isinstance(request, dict):
        return request
    if path in _WITHOUT_FIELD:
        message = (
            f"{target.public} was trained with a chat template of its own, which vLLM can't use on {path}. Ask it on "
            "/v1/chat/completions."
        )
        return ErrorResponse(400, "BadRequestError", message)
    return request | {_FIELD: template} if _TURNS in request else request
