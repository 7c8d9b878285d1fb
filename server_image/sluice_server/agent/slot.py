"""What is known about the slot as a whole: whether it is ready, and what the operator is told."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from sluice_api.reports import LoadedAdapter, LoadedState
from sluice_server.agent import plan
from sluice_server.agent.plan import World

_PATIENCE_SECONDS = 10.0
"""A busy vLLM may be late with an answer; one that is gone for so long does not serve."""


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
    def news(self) -> tuple[object, ...]:
        """The part whose change is reported at once."""
        return self.serving, self.draining, self.asleep, self.adapters, self.message


class Slot:
    """The slot as last seen. `on_news` is called when the operator should know at once."""

    def __init__(self, on_news: Callable[[], None]) -> None:
        self.must_drain = False
        self._on_news = on_news
        self._world: World | None = None
        self._healthy = self._asleep = self._gone = False
        self._settled_boot = ""
        self._seen = monotonic()
        self._message = "The agent is starting."
        self._told: tuple[object, ...] = ()

    def observed(self, world: World, *, healthy: bool, base_fault: str, awake_because: str = "") -> None:
        """vLLM has answered, and the API server has too.

        Args:
            base_fault: why the base model's last check failed.
            awake_because: why a slot that is to sleep still takes memory of its GPUs; empty when it takes none.
        """
        self._world, self._seen, self._gone = world, monotonic(), False
        self._healthy = healthy and not base_fault
        self.must_drain = world.draining
        resting = plan.at_rest(world)
        self._asleep = resting and world.rest is not None and world.rest.wanted is True and not awake_because
        if resting:
            self._settled_boot = ""  # what was published meanwhile is loaded before it is ready again
        # Once ready, a slot stays ready while it loads what is published later.
        elif plan.settled(world):
            self._settled_boot = world.state.boot
        self._message = (base_fault or awake_because) if healthy else "vLLM says that its engine is dead."
        self._notice()

    def unreachable(self, why: str, must_drain: bool, *, nobody_listens: bool = False) -> None:
        """vLLM has not answered: it is busy, or there is none, and then what it last answered counts for nothing."""
        self.must_drain = must_drain
        self._gone = nobody_listens
        if not self._fresh:
            self._message = f"vLLM does not answer: {why}"[:1024]
        self._notice()

    def unsynced(self) -> None:
        """vLLM has answered, but what it should serve is not known yet."""
        self._message = "The agent can't read the engine and its adapters from the API server yet."
        self._notice()

    def view(self) -> View:
        """The slot now."""
        since = monotonic() - self._seen
        world = self._world
        if world is None or not self._fresh:
            return View(
                serving=False,
                draining=self.must_drain,
                in_flight=0,
                quiet_seconds=since,
                adapters=plan.reports(world) if world else (),
                message=self._message,
            )
        state = world.state
        settled = self._settled_boot == state.boot
        return View(
            serving=self._healthy and settled,
            draining=self.must_drain and (state.desired.draining or state.terminating),
            in_flight=state.in_flight,
            quiet_seconds=state.quiet_seconds + since,
            adapters=plan.reports(world),
            message=self._message or ("" if settled else _loading(world)),
            asleep=self._asleep,
        )

    @property
    def ready(self) -> bool:
        """Whether requests may come: the answer of /readyz."""
        return self.view().serving and not self.must_drain

    @property
    def hurries(self) -> bool:
        """Whether somebody waits for the slot to drain, or to sleep."""
        return self.must_drain and not self._asleep

    @property
    def _fresh(self) -> bool:
        return self._world is not None and not self._gone and monotonic() - self._seen < _PATIENCE_SECONDS

    def _notice(self) -> None:
        news = self.view().news
        if news != self._told:
            self._told = news
            self._on_news()


def _loading(world: World) -> str:
    if plan.at_rest(world):
        return "vLLM is not started yet." if world.state.held else "vLLM sleeps, or wakes."
    names = [told.name for told in plan.reports(world) if told.state == LoadedState.LOADING]
    return f"Loading {', '.join(names)}."[:1024]
