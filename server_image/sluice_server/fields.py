"""Fields of a request that vLLM would ignore: those by which other servers name an adapter, and unknown ones.

vLLM reads the adapter from `model` alone and drops unknown fields. A request that names its adapter in another server's
field would be answered by the base model.
"""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from sluice_server.aliases import Aliases, ErrorResponse

_ADAPTER = "lora_adapter_name"
"""ServerlessLLM's field for the adapter, beside the base model in `model`. It is understood."""

_ADAPTER_ELSEWHERE = (
    "adapter",
    "adapter_id",
    "adapter_source",
    "lora",
    "lora_id",
    "lora_name",
    "lora_path",
    "lora_request",
)
"""Names of the same field elsewhere (LoRAX, TGI, SGLang, vLLM's Python interface). They are refused, unless the route
knows a field of that name."""

_HARMLESS = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"})
"""OpenAI's fields for its own bookkeeping. They change no answer, so they may be ignored."""


def adapter_into_model(request: dict[str, Any], aliases: Aliases) -> dict[str, Any] | ErrorResponse:
    """The request with the adapter of ServerlessLLM's field moved into `model`, where vLLM expects it."""
    if _ADAPTER not in request:
        return request
    model, name = request.get("model"), request[_ADAPTER]
    rest = {key: value for key, value in request.items() if key != _ADAPTER}
    if name is None or name == "":
        return rest
    if not isinstance(name, str):
        return ErrorResponse(
            400, "BadRequestError", f"{_ADAPTER} is no name. Write the adapter's name into model.", _ADAPTER
        )
    if model not in (None, "", name) and not aliases.is_base(model):
        message = (
            f"model is {model!r} and {_ADAPTER} {name!r}. "
            f"Write the adapter's name into model, and leave out {_ADAPTER}."
        )
        return ErrorResponse(400, "BadRequestError", message, _ADAPTER)
    return rest | {"model": name}


def ignored_field(request: dict[str, Any], known: frozenset[str] | None) -> ErrorResponse | None:
    """The error for the first field that vLLM would ignore; None if there is none.

    Args:
        known: the fields of the route's body; None where they can't be found out.
    """
    for field in request:
        if known is not None and field in known:
            continue
        if field in _ADAPTER_ELSEWHERE:
            message = f"{field} would be ignored: write the adapter's name into model."
            return ErrorResponse(400, "BadRequestError", message, field)
        if known is not None and field not in _HARMLESS:
            return ErrorResponse(400, "BadRequestError", f"vLLM has no field {field} here, and would ignore it.", field)
    return None


def known_fields(app: Any, path: str) -> frozenset[str] | None:
    """The fields of the JSON body that vLLM's application takes at a POST route; None where they can't be found out."""
    for route in getattr(app, "routes", ()):
        if getattr(route, "path", None) == path and "POST" in getattr(route, "methods", ()):
            bodies = [param.field_info.annotation for param in route.dependant.body_params]
            names = {name for body in bodies for model in _models(body) for name in _names(model)}
            return frozenset(names) or None
    return None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models in an annotation: itself, or the members of a union, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _names(model: type[BaseModel]) -> Iterator[str]:
    """The names under which a pydantic model takes its fields, aliases included."""
    for name, field in model.model_fields.items():
        yield name
        yield from (alias for alias in (field.alias, field.validation_alias) if isinstance(alias, str))
