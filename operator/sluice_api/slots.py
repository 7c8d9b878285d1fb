"""What the operator gives to both containers of an engine's pod."""

from typing import Literal

from pydantic import NonNegativeInt

from sluice_api.inferenceengine import InferenceEngineSpec, LendingPolicy
from sluice_api.model import Model


class SlotSpec(Model):
    """The replica that a pod is, in the environment of vLLM's container and of the agent's."""

    namespace: str
    engine: str
    index: NonNegativeInt
    spec: InferenceEngineSpec
    device: Literal["cuda", "cpu"] = "cuda"

    @property
    def sleep_level(self) -> Literal[0, 1, 2]:
        """At which level its vLLM sleeps while it is lent; 0 for one that can't: vLLM has no sleep mode on CPUs."""
        terms = self.spec.preemption
        return terms.sleep_level if terms.policy is LendingPolicy.SLEEP and self.device == "cuda" else 0
