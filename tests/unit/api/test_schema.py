"""From a pydantic model to a schema that the API server takes."""

from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, StringConstraints

from sluice_api.conditions import Condition
from sluice_api.model import Model, Name, Remedy
from sluice_api.resource import Rule, rules
from sluice_api.schema import (
    RULES,
    SchemaError,
    fields_of,
    require_bounds,
    require_descriptions,
    structural,
    without_defaults,
)


class Size(StrEnum):
    """How large."""

    SMALL = "Small"
    LARGE = "Large"


class Inner(Model):
    """What is inside."""

    count: int = Field(3, ge=1, le=10, description="How many.")


class Outer(Model):
    """What is outside."""

    required: str = Field(max_length=5, description="Must be there.")
    optional: str | None = Field(None, max_length=5, description="May be absent.")
    size: Size = Field(Size.SMALL, description="Its own words.")
    only: Literal["One"] = Field("One", description="One choice.")
    inner: Inner = Field(default_factory=Inner)
    absent: Inner | None = Field(None, description="Absent by default.")
    names: tuple[Name, ...] = Field((), max_length=4, description="Some names.")
    conditions: tuple[Condition, ...] = Field((), max_length=4, description="The state.")
    large: int = Field(0, ge=0, description="No upper bound.")
    labels: Annotated[
        dict[Annotated[str, StringConstraints(pattern="^a+$")], Annotated[str, StringConstraints(max_length=3)]],
        Remedy("write a"),
    ] = Field(default_factory=dict, max_length=2, description="Some labels.")


FIELDS = structural(Outer)["properties"]


@pytest.mark.parametrize(
    ("rule", "field", "expected"),
    [
        ("a plain field keeps its bounds", "required", {"type": "string", "maxLength": 5}),
        ("what may be absent is not null", "optional", {"type": "string", "maxLength": 5}),
        ("an enumeration has the field's words, not its class's", "size", {"enum": ["Small", "Large"]}),
        ("the only choice is an enumeration of one", "only", {"enum": ["One"], "default": "One"}),
        ("a bounded integer is an int32", "inner.count", {"format": "int32", "minimum": 1, "maximum": 10}),
        ("an integer without a bound is an int64", "large", {"format": "int64", "minimum": 0}),
        ("a sub-object with defaults is there", "inner", {"default": {}, "description": "What is inside."}),
        ("words are a set", "names", {"x-kubernetes-list-type": "set", "maxItems": 4}),
        (
            "conditions merge by their type",
            "conditions",
            {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
        ("a time is a date-time", "conditions[].lastTransitionTime", {"type": "string", "format": "date-time"}),
        (
            "a map's keys are checked by a rule",
            "labels",
            {"maxProperties": 2, RULES: [{"rule": "self.all(key, key.matches(r'^a+$'))", "message": "write a"}]},
        ),
    ],
)
def test_schema_of_a_field(rule: str, field: str, expected: dict[str, Any]) -> None:
    fields = dict(fields_of(structural(Outer), ""))
    assert expected.items() <= fields[f".{field}"].items(), rule


def test_required_are_only_fields_without_default() -> None:
    assert structural(Outer)["required"] == ["required"]


def test_optional_object_has_no_default() -> None:
    assert "default" not in FIELDS["absent"]


def test_a_pattern_becomes_a_rule_with_its_remedy() -> None:
    items = FIELDS["names"]["items"]
    assert "pattern" not in items
    (rule,) = items[RULES]
    assert rule["rule"].startswith("self.matches(r'^[a-z0-9]")
    assert rule["message"].startswith("write a name")


def test_structural_schema_has_no_forbidden_keyword() -> None:
    text = str(structural(Outer))
    for keyword in ("$ref", "$defs", "'title'", "anyOf", "'const'", "patternProperties", "x-sluice"):
        assert keyword not in text


def test_a_status_has_no_defaults() -> None:
    assert "'default'" not in str(without_defaults(structural(Outer)))


def test_validation_rules_of_an_object_are_kept() -> None:
    class Ruled(Model):
        """With a rule."""

        model_config = {"json_schema_extra": rules(Rule("self.a == 1", "write 1", at=".a"))}

    assert structural(Ruled)[RULES] == [{"rule": "self.a == 1", "message": "write 1", "fieldPath": ".a"}]


def model_with(annotation: Any) -> type[Model]:
    return type("Broken", (Model,), {"__annotations__": {"field": annotation}})


@pytest.mark.parametrize(
    ("annotation", "missing"),
    [
        (str, "maxLength"),
        (tuple[Size, ...], "maxItems"),
        (dict[str, Size], "maxProperties"),
        (Annotated[tuple[str, ...], Field(max_length=1)], "maxLength"),
    ],
    ids=str,
)
def test_field_without_bounds_is_refused(annotation: Any, missing: str) -> None:
    with pytest.raises(SchemaError, match=rf"spec\.field.* has no {missing}"):
        require_bounds(structural(model_with(annotation)), "spec")


def test_a_field_without_a_description_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"spec\.field has no description"):
        require_descriptions(structural(model_with(int)), "spec")


def test_a_pattern_without_a_remedy_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"Broken\.field has a pattern and no Remedy"):
        structural(model_with(Annotated[str, StringConstraints(pattern="^a$")]))


def test_untranslatable_field_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"Broken\.field: cannot translate anyOf"):
        structural(model_with(int | str))
