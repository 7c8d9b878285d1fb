"""The slot as a whole: whether it is ready, and what the operator gets to know of it."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from sluice_api.reports import LoadedAdapter, LoadedState
from sluice_server.agent import plan
from sluice_server.agent.plan import World

_PATIENCE_SECONDS = 10.0
"""How long a vLLM that gives no answer still counts as serving: a busy one may be late."""


@dataclass(frozen=True)
class View:
    """The slot at one moment, for /readyz and for a report."""

    serving: bool
    draining: bool
    in_flight: int
    quiet_seconds: float
    adapters: tuple[LoadedAdapter, ...]
    message: str
    asleep: bool = False

    @property
    def urgent(self) -> tuple[object, ...]:
        """The part whose change is reported at once."""
        return self.serving, self.draining, self.asleep, self.adapters, self.message


class Slot:
    """The slot as last observed. `on_change` is called when the operator should know at once."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.must_drain = False
        self._on_change = on_change
        self._world: World | None = None
        self._healthy = self._not_listening = False
        self._settled_boot = ""
        self._observed_at = monotonic()
        self._message = "The agent is starting."
        self._last_urgent: tuple[object, ...] = ()

    def observed(self, world: World, *, healthy: bool, base_fault: str) -> None:
        """Take a new observation of vLLM.

        Args:
            world: what was observed and follows from it.
            healthy: whether vLLM says that its engine lives.
            base_fault: why the base model's last check failed; empty if it did not.
        """
        self._world, self._observed_at, self._not_listening = world, monotonic(), False
        self._healthy = healthy and not base_fault
        self.must_drain = world.draining
        if not plan.serves(world):
            self._settled_boot = ""  # Adapters that are published meanwhile are loaded before the slot is ready again.
        # Once ready, a slot stays ready while it loads adapters that are published later.
        elif plan.settled(world):
            self._settled_boot = world.state.boot
        self._message = (base_fault or world.sleep.awake_because) if healthy else "vLLM says that its engine is dead."
        self._report_change()

    def unreachable(self, why: str, must_drain: bool, *, not_listening: bool = False) -> None:
        """Note that vLLM has not answered.

        Args:
            why: the error, for the message.
            must_drain: whether the engine's status wants the slot to drain.
            not_listening: whether nothing listens on vLLM's port. Then the last observation counts no more; otherwise
                vLLM may be busy, and it counts for some seconds.
        """
        self.must_drain = must_drain
        self._not_listening = not_listening
        if not self._is_recent:
            self._message = f"vLLM does not answer: {why}"[:1024]
        self._report_change()

    def unsynced(self) -> None:
        """Note that vLLM has answered, but the informers do not know yet what it should serve."""
        self._message = "The agent can't read the engine and its adapters from the API server yet."
        self._report_change()

    def view(self) -> View:
        """The slot now."""
        since = monotonic() - self._observed_at
        world = self._world
        if world is None or not self._is_recent:
            return View(
                serving=False,
                draining=self.must_drain,
                in_flight=0,
                quiet_seconds=since,
                adapters=plan.adapter_reports(world) if world else (),
                message=self._message,
            )
        state = world.state
        settled = self._settled_boot == state.boot
        return View(
            serving=self._healthy and settled,
            draining=self.must_drain and (state.desired.draining or state.terminating),
            in_flight=state.in_flight,
            quiet_seconds=state.quiet_seconds + since,
            adapters=plan.adapter_reports(world),
            message=self._message or ("" if settled else _progress(world)),
            asleep=world.sleep.asleep,
        )

    @property
    def ready(self) -> bool:
        """Whether requests may come: the answer of /readyz."""
        return self.view().serving and not self.must_drain

    @property
    def is_awaited(self) -> bool:
        """Whether the operator waits for the slot to drain or fall asleep: the agent reports more often then."""
        return self.must_drain and not (self._world is not None and self._world.sleep.asleep)

    @property
    def _is_recent(self) -> bool:
        """Whether the last observation still counts."""
        return (
            self._world is not None and not self._not_listening and monotonic() - self._observed_at < _PATIENCE_SECONDS
        )

    def _report_change(self) -> None:
        urgent = self.view().urgent
        if urgent != self._last_urgent:
            self._last_urgent = urgent
            self._on_change()


def _progress(world: World) -> str:
    """What a slot that is not ready yet is doing."""
    if not plan.serves(world):
        return world.sleep.progress
    names = [report.name for report in plan.adapter_reports(world) if report.state == LoadedState.LOADING]
    return f"Loading {', '.join(names)}."[:1024]
