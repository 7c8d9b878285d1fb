"""Fields of a request that vLLM would ignore in silence: those of other servers that name an adapter, and unknown ones.

vLLM answers from `model` alone and drops what it does not know, so that a request for an adapter in another server's
words would be answered by the base model.
"""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from sluice_server.aliases import Aliases, Refused

ADAPTER = "lora_adapter_name"
"""ServerlessLLM's: the adapter beside the base model in `model`."""

_ADAPTERS = ("adapter", "adapter_id", "adapter_source", "lora", "lora_id", "lora_name", "lora_path", "lora_request")
"""What other servers call it (LoRAX, TGI, SGLang, vLLM's Python interface). A field that vLLM knows is its own."""

_OPENAI = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"})
"""Of OpenAI's, about its own bookkeeping: no answer differs for them."""


def without_adapter(request: dict[str, Any], aliases: Aliases) -> dict[str, Any] | Refused:
    """The request with the adapter that it names in `model`, where one server has one place for it and vLLM another."""
    if ADAPTER not in request:
        return request
    model, name = request.get("model"), request[ADAPTER]
    rest = {key: value for key, value in request.items() if key != ADAPTER}
    if name is None or name == "":
        return rest
    if not isinstance(name, str):
        return Refused(400, "BadRequestError", f"{ADAPTER} is no name. Write the adapter's name into model.", ADAPTER)
    if model not in (None, "", name, aliases.base.public):
        message = (
            f"model is {model!r} and {ADAPTER} {name!r}. Write the adapter's name into model, and leave out {ADAPTER}."
        )
        return Refused(400, "BadRequestError", message, ADAPTER)
    return rest | {"model": name}


def ignored(request: dict[str, Any], known: frozenset[str] | None) -> Refused | None:
    """Why a request is refused that has a field which vLLM would ignore.

    Args:
        known: What the route's own model has; None where that can't be told.
    """
    for field in request:
        if known is not None and field in known:
            continue
        if field in _ADAPTERS:
            message = f"{field} would be ignored: write the adapter's name into model."
            return Refused(400, "BadRequestError", message, field)
        if known is not None and field not in _OPENAI:
            return Refused(400, "BadRequestError", f"vLLM has no field {field} here, and would ignore it.", field)
    return None


def known_fields(app: Any, path: str) -> frozenset[str] | None:
    """The fields of the JSON body that vLLM's application takes at a POST route; None where it does not say."""
    for route in getattr(app, "routes", ()):
        if getattr(route, "path", None) == path and "POST" in getattr(route, "methods", ()):
            bodies = [param.field_info.annotation for param in route.dependant.body_params]
            names = {name for body in bodies for model in _models(body) for name in _names(model)}
            return frozenset(names) or None
    return None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a body may be of: itself, or those of a union, however it is written."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _names(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        yield from (alias for alias in (field.alias, field.validation_alias) if isinstance(alias, str))
