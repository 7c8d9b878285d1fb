"""What agent and middleware tell each other on the control routes, as JSON.

`PUT /sluice/state` takes a DesiredState, `GET /sluice/state` answers with an ObservedState, and
`POST /sluice/terminate` says that the pod is going: it drains from then on, whatever the agent wants.
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


class ObservedState(Model):
    """What requests meet, and how many there are."""

    boot: str = Field(description="Another one after each start of vLLM.")
    desired: DesiredState = Field(description="The last one that was put; empty after a start of vLLM.")
    terminating: bool = Field(description="preStop has run: the pod is being deleted.")
    in_flight: NonNegativeInt
    in_flight_by_version: dict[str, int]
    quiet_seconds: FiniteFloat = Field(description="Since the last request began, or since vLLM's start.")
    draining_seconds: FiniteFloat = Field(description="Since the slot began to drain; 0 while it does not.")
