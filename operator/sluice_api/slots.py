"""What the operator gives to both containers of an engine's pod."""

from typing import Literal

from pydantic import NonNegativeInt

from sluice_api.inferenceengine import InferenceEngineSpec
from sluice_api.model import Model


class SlotSpec(Model):
    """The replica that a pod is, in the environment of vLLM's container and of the agent's."""

    namespace: str
    engine: str
    index: NonNegativeInt
    spec: InferenceEngineSpec
    device: Literal["cuda", "cpu"] = "cuda"
