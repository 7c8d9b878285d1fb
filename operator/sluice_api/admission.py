"""What an API server says of a new object, without one: from the same schema, the same defaults and the same CEL rules.

It stands for `kubectl create` of an object of the newest version: an unknown field is refused, a field that is absent
gets its default, and the rules run once the types are right. Of metadata, only what people write is looked at: names,
labels and annotations. tests/integration/refusals.py has what both are asked.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import cel
from jsonschema import Draft7Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from sluice_api.crd import resource_schema
from sluice_api.meta import API_VERSION
from sluice_api.quantity import amount
from sluice_api.resource import Resource
from sluice_api.schema import RULES, Schema

Path = tuple[str | int, ...]

_METADATA = frozenset(
    {
        "name", "generateName", "namespace", "labels", "annotations", "finalizers", "ownerReferences", "uid",
        "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
        "managedFields", "selfLink",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """Why an object is refused."""

    path: Path
    """Where, such as ("spec", "training", "epochs")."""
    message: str
    """What to write instead."""
    value: object = None
    """What is there."""
    unknown: bool = False
    """There is no such field."""

    @property
    def field(self) -> str:
        """The path as people write it: spec.lora.targetModules[0]."""
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return "".join(parts).removeprefix(".")


def problems(resource: type[Resource], body: Mapping[str, Any]) -> list[Problem]:
    """All reasons for which an API server would refuse a new object; none if it takes it."""
    schema = resource_schema(resource)
    unknown = list(_unknown(body, schema, ()))
    stored = _with_defaults(body, schema)
    invalid = [*_of_every_object(resource, body), *_invalid(stored, schema)]
    return unknown + (invalid or list(_broken(stored, schema, ())))


def filled(resource: type[Resource], body: Mapping[str, Any]) -> dict[str, Any]:
    """A new object as an API server would store it: with the defaults of what is absent, or null."""
    stored: dict[str, Any] = _with_defaults(body, resource_schema(resource))
    return stored


def _with_defaults(value: Any, schema: Schema) -> Any:
    if isinstance(value, Mapping) and "properties" in schema:
        fields = {name: each for name, each in value.items() if each is not None}
        for name, field in schema["properties"].items():
            if name not in fields and "default" in field:
                fields[name] = field["default"]
            if name in fields:
                fields[name] = _with_defaults(fields[name], field)
        return fields
    if isinstance(value, Mapping) and "additionalProperties" in schema:
        return {name: _with_defaults(each, schema["additionalProperties"]) for name, each in value.items()}
    if isinstance(value, list) and "items" in schema:
        return [_with_defaults(each, schema["items"]) for each in value]
    return value


def _of_every_object(resource: type[Resource], body: Mapping[str, Any]) -> Iterator[Problem]:
    """What an API server asks of any object: its kind, and its metadata."""
    for name, right in (("apiVersion", API_VERSION), ("kind", resource.KIND.kind)):
        if body.get(name) != right:
            yield Problem((name,), f"write {right}", body.get(name))
    metadata = body.get("metadata")
    if not isinstance(metadata, Mapping):
        yield Problem(("metadata",), "write an object with a name", metadata)
        return
    if not isinstance(metadata.get("name"), str) or not metadata["name"]:
        yield Problem(("metadata", "name"), "write a name", metadata.get("name"))
    for name in ("labels", "annotations"):
        found = metadata.get(name) or {}
        if not isinstance(found, Mapping):
            yield Problem(("metadata", name), "write an object", found)
            continue
        for key, value in found.items():
            if not isinstance(value, str):
                yield Problem(("metadata", name, key), "write a string, in quotes", value)
    for name in metadata.keys() - _METADATA:
        yield Problem(("metadata", str(name)), "there is no such field", metadata[name], unknown=True)


def _unknown(value: Any, schema: Schema, path: Path) -> Iterator[Problem]:
    """Fields that the schema does not have. It says nothing of metadata, which every object has."""
    if isinstance(value, Mapping) and "properties" in schema:
        for name, each in value.items():
            field = schema["properties"].get(name)
            if field is None:
                yield Problem((*path, name), "there is no such field", each, unknown=True)
            else:
                yield from _unknown(each, field, (*path, name))
    elif isinstance(value, Mapping) and "additionalProperties" in schema:
        for name, each in value.items():
            yield from _unknown(each, schema["additionalProperties"], (*path, name))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _unknown(each, schema.get("items", {}), (*path, index))


# An API server takes 1.0 for no integer, and a list of the type "set" has each value once.
_FORMATS = FormatChecker(formats=())
_TYPES = Draft7Validator.TYPE_CHECKER.redefine(
    "integer", lambda _checker, value: isinstance(value, int) and not isinstance(value, bool)
)


_RFC3339 = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[-+]\d\d:\d\d)$")


def _is_date_time(value: object) -> bool:
    return not isinstance(value, str) or (bool(_RFC3339.match(value)) and bool(datetime.fromisoformat(value)))


_FORMATS.checks("date-time", raises=ValueError)(_is_date_time)


def _each_once(_validator: Any, kind: str, value: Any, _schema: Schema) -> Iterator[ValidationError]:
    if kind == "set" and isinstance(value, list):
        twice = next((each for index, each in enumerate(value) if each in value[:index]), None)
        if twice is not None:
            yield ValidationError(f"write {twice!r} once")


_Validator = extend(Draft7Validator, {"x-kubernetes-list-type": _each_once}, type_checker=_TYPES)


def _invalid(body: Mapping[str, Any], schema: Schema) -> Iterator[Problem]:
    for error in _Validator(schema, format_checker=_FORMATS).iter_errors(body):
        yield Problem(tuple(error.absolute_path), _said(error), error.instance)


_SAID: dict[str, Callable[[Any], str]] = {
    "minimum": lambda least: f"write at least {least}",
    "maximum": lambda most: f"write at most {most}",
    "minLength": lambda _: "write something",
    "maxLength": lambda most: f"write at most {most} characters",
    "minItems": lambda least: f"name at least {least}",
    "maxItems": lambda most: f"name at most {most}",
    "maxProperties": lambda most: f"name at most {most}",
    "enum": lambda names: f"write one of {', '.join(map(str, names))}",
    "format": lambda _: "write a moment with its zone, such as 2027-01-04T20:00:00Z",
}


def _said(error: ValidationError) -> str:
    """An error of a schema in our words: what to write."""
    schema = error.schema if isinstance(error.schema, Mapping) else {}
    match str(error.validator), error.validator_value:
        case "required", names:
            missing = [name for name in names if name not in error.instance]
            return f"write {' and '.join(missing)}, which must be there"
        case "type", kind:
            remedy = next((rule["message"] for rule in schema.get(RULES, ())), "")
            quotes = f"in quotes: '{error.instance}'" if kind == "string" and _is_number(error.instance) else ""
            article = "an" if kind in ("integer", "object", "array") else "a"
            return "; ".join(part for part in (f"write {article} {kind} {quotes}".rstrip(), remedy) if part)
        case name, value if name in _SAID:
            return _SAID[name](value)
    return str(error.message)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _broken(value: Any, schema: Schema, path: Path) -> Iterator[Problem]:
    """Rules that a value breaks. Those of a change (oldSelf) say nothing of a new object."""
    for rule in schema.get(RULES, ()):
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value, schema):
            at = tuple(rule["fieldPath"].removeprefix(".").split(".")) if "fieldPath" in rule else ()
            yield Problem((*path, *at), rule["message"], _at(value, at))
    if isinstance(value, Mapping):
        fields = schema.get("properties", {})
        for name, each in value.items():
            yield from _broken(each, fields.get(name, schema.get("additionalProperties", {})), (*path, name))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _broken(each, schema.get("items", {}), (*path, index))


def _at(value: Any, path: Path) -> Any:
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _holds(rule: str, value: Any, schema: Schema) -> bool:
    """Whether a rule holds. One that can't be computed is broken, as for an API server."""
    context = cel.Context()
    context.add_variable("self", datetime.fromisoformat(value) if schema.get("format") == "date-time" else value)
    for name, function in _FUNCTIONS.items():
        context.add_function(name, function)
    try:
        return bool(_compiled(rule).execute(context))
    except (ValueError, TypeError, RuntimeError):
        return False


@cache
def _compiled(rule: str) -> Any:
    return cel.compile(rule)


def _is_quantity(text: str) -> bool:
    try:
        amount("memory", text)
    except ValueError:
        return False
    return True


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "isQuantity": _is_quantity,
    "quantity": lambda text: float(amount("memory", text)),
    "compareTo": lambda one, other: (one > other) - (one < other),
}
"""Those of Kubernetes that our rules use: https://kubernetes.io/docs/reference/using-api/cel/."""
