"""The JSON that agent and middleware exchange on the control routes.

`PUT /sluice/state` takes a DesiredState, `GET /sluice/state` answers with an ObservedState, and
`POST /sluice/terminate` says that the pod is being deleted: it drains from then on, whatever the agent wants.
`POST /sluice/start` opens the start gate (start_gate.py), and `POST /sluice/end` ends a vLLM that can't be trusted any
more: the kubelet restarts its container. `POST /sluice/layers` with a version is answered with its AdapterLayers.
"""

from pydantic import Field, FiniteFloat, NonNegativeInt

from sluice_api.model import Model


class Unavailable(Model):
    """Why a public name is not served."""

    reason: str = Field(description="A name from reasons.Reason.")
    message: str


class DesiredState(Model):
    """How the agent wants requests to be treated."""

    aliases: dict[str, str] = Field(default_factory=dict, description="Public name to version inside vLLM.")
    unavailable: dict[str, Unavailable] = Field(default_factory=dict, description="By public name.")
    draining: bool = False
    asleep: bool = Field(
        False,
        description="Requests are refused: vLLM sleeps, is about to, or its answers after waking are not checked yet.",
    )


class DeviceMemory(Model):
    """A GPU's memory in bytes; `used` counts all processes."""

    used: NonNegativeInt
    total: NonNegativeInt


class AdapterLayers(Model):
    """What vLLM uses of a loaded adapter."""

    layers: NonNegativeInt = Field(description="Layers that the adapter changes; fused ones count once.")
    passed_over: tuple[str, ...] = Field(
        description="Those of them that vLLM's model does not have, so that they change nothing."
    )


class ObservedState(Model):
    """How requests are treated, and how many there are."""

    boot: str = Field(description="An id that is new at each start of vLLM.")
    desired: DesiredState = Field(description="The DesiredState put last; empty after a start of vLLM.")
    terminating: bool = Field(description="preStop has run: the pod is being deleted.")
    in_flight: NonNegativeInt
    in_flight_by_version: dict[str, int]
    quiet_seconds: FiniteFloat = Field(description="Since the last request began, or since vLLM's start.")
    held: bool = Field(False, description="The start gate answers: vLLM starts when the agent opens it.")
    memory: tuple[DeviceMemory, ...] | None = Field(
        None, description="Of this pod's GPUs, while requests are refused for sleep; absent where NVML does not answer."
    )
    draining_seconds: FiniteFloat = Field(description="Since the slot began to drain; 0 while it does not.")
