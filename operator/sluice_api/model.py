"""The base of every type that crosses a process boundary."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, StringConstraints, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

REMEDY = "x-sluice-remedy"
"""In a model's JSON schema, beside a pattern: what to write instead."""


class Model(BaseModel):
    """A value as it is written in YAML and JSON: camelCase outside, snake_case inside, no unknown field."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    def to_json(self) -> str:
        """One line of JSON without the fields that are absent."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


@dataclass(frozen=True)
class Remedy:
    """What to write instead of a value that does not match the pattern: the API server's answer says it."""

    text: str

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The type's schema, with the remedy."""
        return handler(core) | {REMEDY: self.text}


Name = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63),
    Remedy("write a name of lower-case letters, digits and '-', such as chat-2"),
]
"""A Kubernetes object's name that is also a DNS label."""

Quantity = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$", max_length=24),
    Remedy("write a quantity, such as 8Gi of memory or 500m of a CPU"),
]
"""A Kubernetes quantity, such as 8Gi or 500m."""

Disk = Annotated[
    str,
    StringConstraints(pattern=r"^[1-9][0-9]{0,4}(Gi|Ti)$", max_length=7),
    Remedy("write a whole number of Gi or Ti, such as 50Gi or 2Ti"),
]
"""An amount of a node's disk: at least 1Gi, which is what pods request."""

SecretName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253),
    Remedy("write the name of a Secret in this namespace, such as registry"),
]

Decimal = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(e-?[0-9]+)?$", max_length=24),
    Remedy("write a decimal number as a string, such as '2e-4' or '0.1'"),
]
"""A non-negative decimal number as a string (2e-4, 0.1): floats do not survive every JSON client."""

Moment = Annotated[datetime, WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 40})]
"""A moment with its time zone, such as 2027-01-04T20:00:00Z; the API server takes no other form (RFC 3339)."""

Seconds = Annotated[int, Field(ge=1, le=31_536_000)]
"""A length of time in seconds, at most a year."""
