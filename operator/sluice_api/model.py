"""The base of every type that crosses a process boundary."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
)
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


@dataclass(frozen=True)
class Limit:
    """What a new value must keep to, in CEL, with what the API server answers otherwise.

    The operator reads on what an older version took, so nothing of this is checked again.
    """

    rule: str
    message: str

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The type's schema, with the rule."""
        schema = handler(core)
        told = {"rule": self.rule, "message": self.message}
        return schema | {"x-kubernetes-validations": [*schema.get("x-kubernetes-validations", ()), told]}


_UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What changes how the text around it is shown, such as the colours of a terminal."""


def plain(text: str) -> str:
    """A text that others wrote as a person may safely read it, just as long: tabs and line feeds stay."""
    return _UNSHOWN.sub("\ufffd", text)


Text = Annotated[str, StringConstraints(max_length=256), AfterValidator(plain)]
"""A name, a number or a word in a status."""
Message = Annotated[str, StringConstraints(max_length=1024), AfterValidator(plain)]
"""A few sentences in a status, for a person; part of them are often another program's words."""

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
    Limit("!self.matches(r'e-?[0-9]{3}')", "write an exponent of at most two digits, such as '2e-4'"),
]
"""A non-negative decimal number as a string (2e-4, 0.1): floats do not survive every JSON client."""

NUMBER = r"^[0-9]+(\.[0-9]+)?(e-?[0-9]{1,2})?$"
"""What CEL can convert: asked first, or its own error would stand in front of the remedy."""

Memory = Annotated[
    Quantity,
    Limit(
        "!isQuantity(self) || quantity(self).compareTo(quantity('64Mi')) >= 0",
        "write at least 64Mi, such as 8Gi: a process of Python alone needs as much",
    ),
]
"""Memory of a pod of ours."""

FIRST_MOMENT, END_OF_TIME = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""All that Sluice reckons with lies between: so a length of time, of ten years at most, can be added to any moment."""


def within_time(moment: datetime) -> datetime:
    """The moment, if it can be reckoned with.

    Raises:
        ValueError: it has no zone, or lies before 1970 or after 2199.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone; write Z or an offset behind it")
    if not FIRST_MOMENT <= moment < END_OF_TIME:
        raise ValueError(f"{moment.isoformat()} is not between 1970 and 2199")
    return moment


Time = Annotated[AwareDatetime, AfterValidator(within_time)]
"""A moment that somebody noted."""


def bounded(moment: datetime) -> datetime:
    """The moment, or the nearest that can be reckoned with: what an older version took is no error of today."""
    return min(max(moment, FIRST_MOMENT), END_OF_TIME - timedelta(seconds=1))


Moment = Annotated[
    AwareDatetime,
    AfterValidator(bounded),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "maxLength": 40,
            "x-kubernetes-validations": [
                {
                    "rule": "self >= timestamp('1970-01-01T00:00:00Z') && self < timestamp('2200-01-01T00:00:00Z')",
                    "message": "write a moment between 1970 and 2199, such as 2027-01-04T20:00:00Z",
                }
            ],
        }
    ),
]
"""A moment in a spec; the API server takes no other form than RFC 3339, which has a zone."""

Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""A number of things: at most what every JSON client can hold, and more than anybody counts."""

Id = Annotated[str, StringConstraints(max_length=253)]
"""A name or a uid as Kubernetes has it, as somebody wrote it down."""

Seconds = Annotated[int, Field(ge=1, le=31_536_000)]
"""A length of time in seconds, at most a year."""

Controller = Annotated[
    str,
    StringConstraints(max_length=253),
    Limit(
        "self.matches(r'^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$')",
        "write a controller's name with its domain, such as kueue.x-k8s.io/multikueue, or leave the field out",
    ),
]
"""As batch/v1 Jobs name one in spec.managedBy."""
