"""What every custom resource has: its kind's names, its columns, its metadata."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, Field

from sluice_api.meta import API_VERSION
from sluice_api.model import NUMBER, Model, Time


@dataclass(frozen=True)
class Column:
    """A printer column of `kubectl get`."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


@dataclass(frozen=True)
class Kind:
    """How the API server knows a resource."""

    kind: str
    plural: str
    short_names: tuple[str, ...]
    columns: tuple[Column, ...]
    namespaced: bool = True
    scale: dict[str, str] | None = None


class Metadata(Model):
    """The part of an object's metadata that decisions read."""

    model_config = ConfigDict(extra="ignore")

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """Namespace and name, as people write them: team/chat."""
        return f"{self.namespace}/{self.name}"


class Resource(Model):
    """A custom resource as the API server returns it."""

    KIND: ClassVar[Kind]

    api_version: str = API_VERSION
    kind: str = ""
    metadata: Metadata

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Self:
        """Read an object as the API server holds it.

        Raises:
            pydantic.ValidationError: it was stored under another version of the schema.
        """
        return cls.model_validate(body)


@dataclass(frozen=True)
class Rule:
    """What a schema can't say, in CEL, with what a user reads when it is broken: what to write instead."""

    rule: str
    message: str
    at: str = ""
    """The field that the message speaks of, such as `.model`; empty for the object itself."""


def rules(*all_rules: Rule) -> dict[str, Any]:
    """Rules of an object, as JSON-schema extra of its model."""
    return {
        "x-kubernetes-validations": [
            {"rule": rule.rule, "message": rule.message} | ({"fieldPath": rule.at} if rule.at else {})
            for rule in all_rules
        ]
    }


def bound(field: str, keeps: str, message: str) -> Rule:
    """The rule that a Decimal field keeps to a bound, such as "< 1.0". What is no number has a rule of its own."""
    number = f"!has(self.{field}) || !self.{field}.matches(r'{NUMBER}')"
    return Rule(f"{number} || double(self.{field}) {keeps}", message, at=f".{field}")


DNS_LABEL_NAME = Rule(
    "self.metadata.name.matches(r'^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",
    "metadata.name: write at most 63 lower-case letters, digits and '-': it becomes a label of the object's children",
)
"""Rule of a whole object: the API server itself would also take dots and 253 characters."""
