"""Taints that pods stand: Kubernetes' own toleration, evaluated here too."""

from typing import Literal

from pydantic import ConfigDict, Field

from sluice_api.model import Model
from sluice_api.resource import Rule, rules
from sluice_api.selectors import LabelKey, LabelValue


class Toleration(Model):
    """One kind of taint."""

    key: LabelKey = Field(description="The taint's key, such as example.com/spot.")
    operator: Literal["Exists", "Equal"] = Field(
        "Exists", description="Exists: the taint may have any value. Equal: it has this value."
    )
    value: LabelValue = Field("", description="With Equal: the value of the taint.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="The taint's effect. Absent: any."
    )

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.operator == 'Equal' || !has(self.value) || self.value == ''",
                "leave it out with operator Exists, or use Equal",
                at=".value",
            ),
            Rule(
                "!self.key.startsWith('node.kubernetes.io/')",
                "leave these taints out: by them Kubernetes says that a node is not ready, is cordoned or lacks memory",
                at=".key",
            ),
        )
    )

    def covers(self, key: str, value: str, effect: str) -> bool:
        """Whether it is about a taint."""
        same_value = self.operator == "Exists" or self.value == value
        return self.key == key and same_value and self.effect in (None, effect)
