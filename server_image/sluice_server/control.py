"""What agent and middleware tell each other on the control routes, as JSON.

`PUT /sluice/state` takes a DesiredState, `GET /sluice/state` answers with an ObservedState, and
`POST /sluice/terminate` says that the pod is going: it drains from then on, whatever the agent wants.
`POST /sluice/start` lets a vLLM start that is held back (see waiting_room.py), and `POST /sluice/end` ends one that
can't be trusted any more: the kubelet starts it anew. `POST /sluice/layers` with a version is answered with its
AdapterLayers.
"""

from pydantic import Field, FiniteFloat, NonNegativeInt

from sluice_api.model import Model


class Unavailable(Model):
    """Why a public name does not answer."""

    reason: str = Field(description="A name from reasons.Reason.")
    message: str


class DesiredState(Model):
    """What the agent wants requests to meet."""

    aliases: dict[str, str] = Field(default_factory=dict, description="Public name to version inside vLLM.")
    unavailable: dict[str, Unavailable] = Field(default_factory=dict, description="By public name.")
    draining: bool = False
    asleep: bool = Field(False, description="vLLM sleeps, is about to, or has not proven yet that it woke well.")


class DeviceMemory(Model):
    """A GPU's memory in bytes, whoever has it."""

    used: NonNegativeInt
    total: NonNegativeInt


class AdapterLayers(Model):
    """What vLLM uses of a loaded adapter."""

    layers: NonNegativeInt = Field(description="Layers that the adapter changes; fused ones count once.")
    passed_over: tuple[str, ...] = Field(
        description="Those of them that vLLM's model has not, so that they do nothing."
    )


class ObservedState(Model):
    """What requests meet, and how many there are."""

    boot: str = Field(description="Another one after each start of vLLM.")
    desired: DesiredState = Field(description="The last one that was put; empty after a start of vLLM.")
    terminating: bool = Field(description="preStop has run: the pod is being deleted.")
    in_flight: NonNegativeInt
    in_flight_by_version: dict[str, int]
    quiet_seconds: FiniteFloat = Field(description="Since the last request began, or since vLLM's start.")
    held: bool = Field(False, description="vLLM has not been started, and will not before the agent says so.")
    memory: tuple[DeviceMemory, ...] | None = Field(
        None, description="Of this pod's GPUs, while the slot is to sleep; absent where nobody can tell."
    )
    draining_seconds: FiniteFloat = Field(description="Since the slot began to drain; 0 while it does not.")
