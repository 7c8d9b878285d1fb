"""A pydantic model as a structural OpenAPI v3 schema, the only kind that the API server takes.

https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from sluice_api.conditions import Condition
from sluice_api.model import REMEDY

Schema = dict[str, Any]
Definitions = Mapping[str, Schema]

RULES = "x-kubernetes-validations"

_COPIED = (
    "description",
    "type",
    "format",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "default",
)
_TRANSLATED = (
    "const",
    "enum",
    "exclusiveMinimum",
    "pattern",
    "patternProperties",
    "propertyNames",
    "properties",
    "required",
    "items",
    "additionalProperties",
    RULES,
    REMEDY,
)
_DROPPED = ("title", "$defs")
_INT32_MAX = 2**31 - 1


class SchemaError(Exception):
    """A model says something that a CustomResourceDefinition cannot say, or fails our own rules for schemas."""


def structural(model: type[BaseModel]) -> Schema:
    """The schema of a model: references inlined, absent instead of null, remedies as rules.

    A sub-object that may be absent and has a default gets `default: {}`, so that the defaults inside it apply.

    Raises:
        SchemaError: names the field.
    """
    schema = model.model_json_schema()
    return _converted(schema, schema.get("$defs", {}), model.__name__)


def without_defaults(schema: Schema) -> Schema:
    """The same schema for a status: what nobody has written is absent."""
    schema = {key: value for key, value in schema.items() if key != "default"}
    for child in ("items", "additionalProperties"):
        if child in schema:
            schema[child] = without_defaults(schema[child])
    if "properties" in schema:
        schema["properties"] = {name: without_defaults(field) for name, field in schema["properties"].items()}
    return schema


def fields_of(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Each field below a schema with its path, from the outside to the inside."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields_of(field, f"{path}.{name}")
    if "items" in schema:
        yield f"{path}[]", schema["items"]
        yield from fields_of(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield f"{path}{{}}", schema["additionalProperties"]


def require_descriptions(schema: Schema, path: str) -> None:
    """Refuse a schema that `kubectl explain` could not explain."""
    for place, field in fields_of(schema, path):
        if not place.endswith(("[]", "{}")) and not field.get("description"):
            raise SchemaError(f"{place} has no description: give its Field one")


def require_bounds(schema: Schema, path: str) -> None:
    """Refuse a schema in which a string, a list or a map may have any length: rules over it would cost too much."""
    for place, field in fields_of(schema, path):
        bound = _missing_bound(field)
        if bound:
            raise SchemaError(f"{place} has no {bound}: every string, list and map of a spec needs one")


def _missing_bound(field: Schema) -> str:
    match field.get("type"):
        case "string" if "enum" not in field and "maxLength" not in field:
            return "maxLength"
        case "array" if "maxItems" not in field:
            return "maxItems"
        case "object" if "additionalProperties" in field and "maxProperties" not in field:
            return "maxProperties"
    return ""


def _converted(node: Schema, definitions: Definitions, place: str) -> Schema:
    node = _inlined(node, definitions)
    unknown = set(node).difference(_COPIED, _TRANSLATED, _DROPPED)
    if unknown:
        raise SchemaError(f"{place}: cannot translate {', '.join(sorted(unknown))}")
    schema = {key: node[key] for key in _COPIED if node.get(key) is not None}
    if "enum" in node or "const" in node:
        schema["enum"] = node.get("enum", [node.get("const")])
    if "exclusiveMinimum" in node:
        schema["minimum"] = node["exclusiveMinimum"] + 1
    if schema.get("type") == "integer":
        schema["format"] = "int32" if schema.get("maximum", _INT32_MAX + 1) <= _INT32_MAX else "int64"
    if "items" in node:
        schema["items"] = _converted(node["items"], definitions, f"{place}[]")
        schema |= _list_type(node["items"], schema["items"])
    _add_properties(schema, node, definitions, place)
    _add_map_values(schema, node, definitions, place)
    rules = [*_pattern_rule(node, place), *node.get(RULES, ())]
    if rules:
        schema[RULES] = rules
    return schema


def _inlined(node: Schema, definitions: Definitions) -> Schema:
    """The node with what it refers to."""
    if "$ref" in node:
        own = {key: value for key, value in node.items() if key != "$ref"}
        return _beside(own, _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions))
    branches = [branch for branch in node.get("anyOf", ()) if branch != {"type": "null"}]
    if len(branches) == 1:
        own = {key: value for key, value in node.items() if key != "anyOf"}
        return _beside(own, _inlined(branches[0], definitions))
    return node


def _beside(own: Schema, referred: Schema) -> Schema:
    """What stands beside a reference wins, such as a field's own description; but the rules of both hold."""
    both = [*referred.get(RULES, ()), *own.get(RULES, ())]
    return referred | own | ({RULES: both} if both else {})


def _add_properties(schema: Schema, node: Schema, definitions: Definitions, place: str) -> None:
    if "properties" not in node:
        return
    required = node.get("required", [])
    if required:
        schema["required"] = required
    schema["properties"] = {}
    for name, child in node["properties"].items():
        field = _converted(child, definitions, f"{place}.{name}")
        if field.get("type") == "object" and name not in required and "anyOf" not in child:
            field.setdefault("default", {})
        schema["properties"][name] = field


def _add_map_values(schema: Schema, node: Schema, definitions: Definitions, place: str) -> None:
    values = list(node.get("patternProperties", {}).values())
    if isinstance(node.get("additionalProperties"), dict):
        values.append(node["additionalProperties"])
    if values:
        schema["additionalProperties"] = _converted(values[0], definitions, f"{place}{{}}")


def _list_type(node: Schema, items: Schema) -> Schema:
    """How lists merge under server-side apply: conditions by their type, sets of words, others as a whole."""
    if node.get("$ref", "").endswith(f"/{Condition.__name__}"):
        return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return {"x-kubernetes-list-type": "set" if items.get("type") == "string" else "atomic"}


def _pattern_rule(node: Schema, place: str) -> list[dict[str, str]]:
    """A pattern as a rule: the API server's own message for a pattern shows a regular expression and no remedy."""
    if "pattern" in node:
        rule = f"self.matches(r'{node['pattern']}')"
    elif "patternProperties" in node:
        (pattern,) = node["patternProperties"]
        rule = f"self.all(key, key.matches(r'{pattern}'))"
    else:
        return []
    if REMEDY not in node:
        raise SchemaError(f"{place} has a pattern and no Remedy: say what to write instead")
    return [{"rule": rule, "message": node[REMEDY]}]
