"""Which objects a rule is about: Kubernetes' own label selector, evaluated here."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from sluice_api.model import Model, Remedy
from sluice_api.resource import Rule, rules

LabelKey = Annotated[
    str,
    StringConstraints(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$", max_length=317),
    Remedy("write a qualified name, such as nvidia.com/gpu"),
]
LabelValue = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$", max_length=63),
    Remedy("write a label's value: at most 63 letters, digits, '-', '_' and '.'"),
]
Labels = Annotated[
    dict[LabelKey, LabelValue], Remedy("write each label's name as nodes have it, such as example.com/gpu")
]


class Requirement(Model):
    """One condition on one label, as Kubernetes' own objects have it: without bounds of ours."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="How it is compared.")
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet it. A label that is absent is in no list of values."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


class LabelRequirement(Requirement):
    """One condition on one label."""

    key: LabelKey = Field(description="The label.")
    values: tuple[LabelValue, ...] = Field((), max_length=16, description="For In and NotIn; empty for the others.")

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                "In and NotIn need values, Exists and DoesNotExist take none",
                at=".values",
            )
        )
    )


class LabelSelector(Model):
    """Objects by their labels. Empty: all of them."""

    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: tuple[Requirement, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is meant."""
        same = all(labels.get(key) == value for key, value in self.match_labels.items())
        return same and all(requirement.holds(labels) for requirement in self.match_expressions)


class NamespaceSelector(LabelSelector):
    """Namespaces by their labels; every namespace has kubernetes.io/metadata.name. Empty: all of them."""

    match_labels: Labels = Field(default_factory=dict, max_length=16, description="Labels that a namespace has.")
    match_expressions: tuple[LabelRequirement, ...] = Field(
        (), max_length=8, description="Further conditions; all must hold."
    )
