"""What the agent does next, decided from values alone: `RULES`, in their order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from sluice_api.reasons import Reason
from sluice_api.reports import LoadedAdapter, LoadedState
from sluice_server.agent.resources import Key, WantedAdapter
from sluice_server.agent.sleep import Phase, Sleep, SleepState, Start, Wake
from sluice_server.control import DesiredState, ObservedState, Unavailable

_MESSAGE_LENGTH = 1024
_RETRY_SOON, _RETRY_LATER, _RETRY_LONGEST = 10.0, 60.0, 3600.0


@dataclass(frozen=True)
class Fetched:
    """The adapter's files are in the cache and have passed every check."""

    version: str


@dataclass(frozen=True)
class Failed:
    """The adapter can't be served as it is; it is tried again at `retry_at`, by the monotonic clock."""

    reason: Reason
    message: str
    retry_at: float
    version: str = ""


Finding = Fetched | Failed


@dataclass(frozen=True)
class World:
    """One slot at one moment: what it should serve, what vLLM has, and what the agent has found out."""

    adapters: tuple[WantedAdapter, ...]
    max_adapters: int
    state: ObservedState
    loaded: frozenset[str]
    """Versions that vLLM has loaded."""
    checked: frozenset[str]
    """Versions that have passed their check in this boot of vLLM."""
    cached: frozenset[str]
    """Folders in the adapter cache."""
    findings: Mapping[Key, Finding]
    busy_with: str | None
    """The version that the work in progress is about, empty if it is about none; None when there is no work."""
    base_checked: bool
    draining: bool
    now: float
    sleep: SleepState

    @cached_property
    def failing(self) -> tuple[WantedAdapter, ...]:
        """Adapters that failed and of which no earlier version is live. They do not count against max_adapters."""
        failed = [adapter for adapter in self.adapters if isinstance(self.findings.get(adapter.key), Failed)]
        return tuple(adapter for adapter in failed if not self._is_live(adapter))

    @cached_property
    def admitted(self) -> tuple[WantedAdapter, ...]:
        """The adapters to serve, at most max_adapters: live ones first, then the oldest."""
        return self._queue[: self.max_adapters]

    @cached_property
    def over_limit(self) -> tuple[WantedAdapter, ...]:
        """The adapters above max_adapters, which are not served."""
        return self._queue[self.max_adapters :]

    @cached_property
    def _queue(self) -> tuple[WantedAdapter, ...]:
        others = [adapter for adapter in self.adapters if adapter not in self.failing]
        return tuple(sorted(others, key=lambda adapter: (not self._is_live(adapter), adapter.age_order)))

    def _is_live(self, adapter: WantedAdapter) -> bool:
        """Whether an alias leads to a version of the adapter that vLLM has."""
        return self.state.desired.aliases.get(adapter.name) in self.loaded

    def version_of(self, adapter: WantedAdapter) -> str | None:
        """The version that the adapter's spec asks for; None until it is in the cache."""
        finding = self.findings.get(adapter.key)
        return finding.version if isinstance(finding, Fetched) else None

    def can_go_live(self, version: str | None) -> bool:
        """Whether vLLM has loaded this version and it has passed its check."""
        return version in self.loaded and version in self.checked


@dataclass(frozen=True)
class Route:
    """Give the middleware its aliases and modes."""

    desired: DesiredState


@dataclass(frozen=True)
class Unload:
    """Unload a version from vLLM."""

    version: str


@dataclass(frozen=True)
class Remove:
    """Delete a version from the cache."""

    version: str


@dataclass(frozen=True)
class Fetch:
    """Copy an adapter's files into the cache and check them."""

    adapter: WantedAdapter


@dataclass(frozen=True)
class Load:
    """Load a cached version into vLLM."""

    adapter: WantedAdapter
    version: str


@dataclass(frozen=True)
class Check:
    """Check the answers of a loaded version."""

    adapter: WantedAdapter
    version: str


@dataclass(frozen=True)
class CheckBase:
    """Check the answers of the base model."""


Step = Route | Unload | Remove | CheckBase | Fetch | Load | Check | Start | Sleep | Wake


@dataclass(frozen=True)
class Wait:
    """Do nothing now: later rules are not asked."""


def next_step(world: World) -> Step | None:
    """The step of the first rule that has something to say; None when it says to wait, or none says anything."""
    decision = next((found for rule in RULES if (found := rule(world))), None)
    return None if isinstance(decision, Wait) else decision


def finish_work_before_sleep(world: World) -> Wait | None:
    """A step in progress ends before the slot falls asleep, wakes or starts."""
    return Wait() if not serves(world) and world.busy_with is not None else None


def route(world: World) -> Route | None:
    """The middleware changes first: a version goes live, or loses its alias, before anything else happens to it."""
    if world.sleep.phase is Phase.HELD:
        return None  # The start gate has no aliases.
    desired = desired_state(world)
    return Route(desired) if desired != world.state.desired else None


def sleep(world: World) -> Start | Sleep | Wake | Wait | None:
    """While the slot does not serve, only its sleep has steps: nothing is loaded meanwhile."""
    if serves(world):
        return None
    return world.sleep.next_step(world.state.in_flight) or Wait()


def unload(world: World) -> Unload | None:
    """A version without an alias is unloaded after its last request."""
    for version in sorted(world.loaded - needed(world)):
        if not world.state.in_flight_by_version.get(version) and version != world.busy_with:
            return Unload(version)
    return None


def one_at_a_time(world: World) -> Wait | None:
    """Work on one adapter ends before work on the next begins; requests are served meanwhile."""
    return Wait() if world.busy_with is not None else None


def remove(world: World) -> Remove | None:
    """A version leaves the cache after vLLM has unloaded it: vLLM may read its files again."""
    return next((Remove(version) for version in sorted(world.cached - needed(world) - world.loaded)), None)


def check_base(world: World) -> CheckBase | None:
    """The base model is checked before any adapter, and again after an adapter has failed its check."""
    return None if world.base_checked else CheckBase()


def check(world: World) -> Check | None:
    """A loaded version is checked before it goes live."""
    for adapter, version in fetched(world):
        if version in world.loaded and version not in world.checked:
            return Check(adapter, version)
    return None


def load(world: World) -> Load | None:
    """A fetched version is loaded."""
    for adapter, version in fetched(world):
        if version not in world.loaded:
            return Load(adapter, version)
    return None


def fetch(world: World) -> Fetch | None:
    """A new adapter is fetched, and then one whose last failure is long enough ago."""
    due = [
        (finding is not None, adapter.age_order, adapter)
        for adapter in (*world.admitted, *world.failing)
        if not isinstance(finding := world.findings.get(adapter.key), Fetched)
        and (finding is None or finding.retry_at <= world.now)
    ]
    return Fetch(min(due)[2]) if due else None


RULES: tuple[Callable[[World], Step | Wait | None], ...] = (
    finish_work_before_sleep,
    route,
    sleep,
    unload,
    one_at_a_time,
    remove,  # after one_at_a_time: a folder that is being fetched has no version yet, and would be removed
    check_base,
    check,
    load,
    fetch,
)


def serves(world: World) -> bool:
    """Whether the slot is awake. Otherwise nothing is loaded and nothing answers."""
    return world.sleep.phase is Phase.AWAKE


def fetched(world: World) -> list[tuple[WantedAdapter, str]]:
    """Admitted adapters whose files are in the cache, with their versions."""
    pairs = [(adapter, world.version_of(adapter)) for adapter in world.admitted]
    return [(adapter, version) for adapter, version in pairs if version is not None]


def needed(world: World) -> frozenset[str]:
    """Versions that a spec asks for or an alias leads to."""
    return frozenset(version for _, version in fetched(world)) | frozenset(world.state.desired.aliases.values())


def pause_after(reason: Reason, failures: int) -> float:
    """Seconds until a failed adapter is tried again.

    After an error of vLLM's each try copies the files again, so the pause grows. Rejected files are not copied again
    before they change (adapter_cache.py), and missing files may come at any moment.
    """
    if reason in (Reason.LOAD_FAILED, Reason.CANARY_FAILED, Reason.ADAPTER_WITHOUT_EFFECT):
        return min(_RETRY_LATER * 2.0 ** (failures - 1), _RETRY_LONGEST)
    return _RETRY_SOON if reason == Reason.ADAPTER_NOT_FOUND else _RETRY_LATER


def desired_state(world: World) -> DesiredState:
    """Where each alias leads. It leads to the old version until the new one has passed its check.

    A slot that sleeps has no aliases: the versions that it wakes with may be old by then.
    """
    if world.sleep.must_refuse:
        return DesiredState(draining=world.draining, asleep=True)
    aliases: dict[str, str] = {}
    unavailable: dict[str, Unavailable] = {}
    for adapter in world.admitted:
        newest_first = (world.version_of(adapter), world.state.desired.aliases.get(adapter.name))
        if version := next((version for version in newest_first if world.can_go_live(version)), None):
            aliases[adapter.name] = version
        else:
            report = adapter_report(world, adapter)
            reason = report.reason or Reason.LOADING
            unavailable[adapter.name] = Unavailable(reason=reason, message=report.message or Reason.LOADING.meaning)
    for adapter in (*world.failing, *world.over_limit):
        report = adapter_report(world, adapter)
        unavailable[adapter.name] = Unavailable(reason=report.reason, message=report.message)
    return DesiredState(aliases=aliases, unavailable=unavailable, draining=world.draining)


def settled(world: World) -> bool:
    """Whether a slot may become ready: the base model is checked, and every adapter is loaded or has failed."""
    return world.base_checked and all(report.state != LoadedState.LOADING for report in adapter_reports(world))


def adapter_reports(world: World) -> tuple[LoadedAdapter, ...]:
    """The state of each adapter of this engine in this slot, for the operator."""
    return tuple(adapter_report(world, adapter) for adapter in (*world.admitted, *world.failing, *world.over_limit))


def adapter_report(world: World, adapter: WantedAdapter) -> LoadedAdapter:
    """The state of one adapter in this slot."""
    live = world.state.desired.aliases.get(adapter.name)
    if adapter in world.over_limit:
        return _failed_report(adapter, _over_limit(world), live)
    match world.findings.get(adapter.key):
        case Failed() as failed:
            return _failed_report(adapter, failed, live)
        case Fetched(version) if live == version and world.can_go_live(version):
            return _report(adapter, LoadedState.LOADED, version)
        case Fetched(version):
            return _report(adapter, LoadedState.LOADING, version)
    return _report(adapter, LoadedState.LOADING, "")


def _report(adapter: WantedAdapter, state: LoadedState, version: str) -> LoadedAdapter:
    return LoadedAdapter(name=adapter.name, generation=adapter.key.generation, state=state, version=version)


def _failed_report(adapter: WantedAdapter, failed: Failed, live: str | None) -> LoadedAdapter:
    message = failed.message
    if live and live != failed.version:
        message += f" {live} still answers."
    return LoadedAdapter(
        name=adapter.name,
        generation=adapter.key.generation,
        version=failed.version,
        state=LoadedState.FAILED,
        reason=failed.reason,
        message=message[:_MESSAGE_LENGTH],
    )


def _over_limit(world: World) -> Failed:
    if world.max_adapters == 0:
        return Failed(
            Reason.ENGINE_TAKES_NO_ADAPTERS, "The engine has no spec.lora: set it, or publish elsewhere.", world.now
        )
    oldest = ", ".join(adapter.name for adapter in world.admitted)
    message = f"lora.maxAdapters is {world.max_adapters}, and {oldest} came first. Delete one, or raise it."
    return Failed(Reason.TOO_MANY_ADAPTERS, message, world.now)
