"""What the agent does next, decided from values alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from sluice_api.reasons import Reason
from sluice_api.reports import LoadedAdapter, LoadedState
from sluice_server.agent.rest import Rest, Sleep, Start, Wake
from sluice_server.agent.wanted import Key, WantedAdapter
from sluice_server.control import DesiredState, ObservedState, Unavailable

_MESSAGE_LENGTH = 1024
_RETRY_SOON, _RETRY_LATER, _RETRY_LONGEST = 10.0, 60.0, 3600.0


@dataclass(frozen=True)
class Fetched:
    """The bytes are on this pod's disk and have passed every check."""

    version: str


@dataclass(frozen=True)
class Failed:
    """The adapter can't answer as it is; it is tried again at `retry_at`."""

    reason: Reason
    message: str
    retry_at: float
    version: str = ""


Finding = Fetched | Failed


@dataclass(frozen=True)
class World:
    """One moment of a slot. `loaded` are vLLM's adapters, `on_disk` the folders that were fetched."""

    adapters: tuple[WantedAdapter, ...]
    places: int
    state: ObservedState
    loaded: frozenset[str]
    answering: frozenset[str]
    on_disk: frozenset[str]
    findings: Mapping[Key, Finding]
    busy_with: str | None
    base_answers: bool
    draining: bool
    now: float
    rest: Rest | None = None
    """None for an engine that never sleeps."""

    @cached_property
    def failing(self) -> tuple[WantedAdapter, ...]:
        """Those that can't be loaded as they are, and of which no earlier version answers: they take no place."""
        failed = [adapter for adapter in self.adapters if isinstance(self.findings.get(adapter.key), Failed)]
        return tuple(adapter for adapter in failed if not self._is_live(adapter))

    @cached_property
    def admitted(self) -> tuple[WantedAdapter, ...]:
        """As many others as there are places: first those that answer already, then the oldest."""
        return self._in_line[: self.places]

    @cached_property
    def refused(self) -> tuple[WantedAdapter, ...]:
        """The ones for which there is no place."""
        return self._in_line[self.places :]

    @cached_property
    def _in_line(self) -> tuple[WantedAdapter, ...]:
        others = [adapter for adapter in self.adapters if adapter not in self.failing]
        return tuple(sorted(others, key=lambda adapter: (not self._is_live(adapter), adapter.age_order)))

    def _is_live(self, adapter: WantedAdapter) -> bool:
        return self.state.desired.aliases.get(adapter.name) in self.loaded

    def version_of(self, adapter: WantedAdapter) -> str | None:
        """The version that the adapter's spec asks for, once its bytes are here."""
        finding = self.findings.get(adapter.key)
        return finding.version if isinstance(finding, Fetched) else None

    def answers(self, version: str | None) -> bool:
        """Whether vLLM has this version and it has passed its check."""
        return version in self.loaded and version in self.answering


@dataclass(frozen=True)
class Route:
    """Tell the middleware which names lead where."""

    desired: DesiredState


@dataclass(frozen=True)
class Unload:
    """Take a version out of vLLM."""

    version: str


@dataclass(frozen=True)
class Remove:
    """Delete a version's bytes."""

    version: str


@dataclass(frozen=True)
class Fetch:
    """Copy and check an adapter's bytes."""

    adapter: WantedAdapter


@dataclass(frozen=True)
class Load:
    """Put a fetched version into vLLM."""

    adapter: WantedAdapter
    version: str


@dataclass(frozen=True)
class Check:
    """Let a loaded version answer once."""

    adapter: WantedAdapter
    version: str


@dataclass(frozen=True)
class CheckBase:
    """Let the base model answer once."""


Step = Route | Unload | Remove | CheckBase | Fetch | Load | Check | Start | Sleep | Wake


def next_step(world: World) -> Step | None:
    """The first rule that has something to do wins; None when all is as it should be."""
    if at_rest(world):
        return resting(world)
    return next((step for rule in RULES if (step := rule(world))), None)


def at_rest(world: World) -> bool:
    """Whether the slot sleeps, goes to sleep or wakes: nothing is loaded meanwhile, and nothing answers."""
    return world.rest is not None and (world.state.held or world.state.desired.asleep or world.rest.wanted is True)


def resting(world: World) -> Start | Route | Sleep | Wake | None:
    """Refuse requests before it sleeps, and wake it, or let it start, only when its GPUs are its own for certain."""
    rest = world.rest
    if rest is None or world.busy_with is not None:
        return None
    if world.state.held:
        return Start() if rest.wanted is False else None
    if change := route(world):
        return change
    if rest.wanted is True:
        return None if rest.sleeping else Sleep(abort=world.state.in_flight > 0)
    return Wake() if rest.wanted is False else None


def route(world: World) -> Route | None:
    """Names first: a version goes live, or loses its name, before anything else happens to it."""
    desired = desired_state(world)
    return Route(desired) if desired != world.state.desired else None


def unload(world: World) -> Unload | None:
    """A version that no name leads to goes after its last request."""
    for version in sorted(world.loaded - needed(world)):
        if not world.state.in_flight_by_version.get(version) and version != world.busy_with:
            return Unload(version)
    return None


def remove(world: World) -> Remove | None:
    """vLLM may read a loaded version's files again: they go after it. What is being fetched has no name yet."""
    if world.busy_with is not None:
        return None
    return next((Remove(version) for version in sorted(world.on_disk - needed(world) - world.loaded)), None)


def check_base(world: World) -> CheckBase | None:
    """Before anything else answers, and again after an adapter did not."""
    return None if world.base_answers else CheckBase()


def check(world: World) -> Check | None:
    """Nothing goes live that has not answered once."""
    for adapter, version in fetched(world):
        if version in world.loaded and version not in world.answering:
            return Check(adapter, version)
    return None


def load(world: World) -> Load | None:
    """What was fetched goes into vLLM."""
    for adapter, version in fetched(world):
        if version not in world.loaded:
            return Load(adapter, version)
    return None


def fetch(world: World) -> Fetch | None:
    """What is new, or failed long enough ago, is fetched; what was never tried comes first."""
    due = [
        (finding is not None, adapter.age_order, adapter)
        for adapter in (*world.admitted, *world.failing)
        if not isinstance(finding := world.findings.get(adapter.key), Fetched)
        and (finding is None or finding.retry_at <= world.now)
    ]
    return Fetch(min(due)[2]) if due else None


def pause_after(reason: Reason, failures: int) -> float:
    """Seconds until a failed adapter is tried again.

    After a refusal of vLLM's the files are copied again for each try, so the pause grows. Files that were rejected are
    known without a copy (adapter_cache.py), and missing files may come at any moment.
    """
    if reason in (Reason.LOAD_FAILED, Reason.CANARY_FAILED, Reason.ADAPTER_WITHOUT_EFFECT):
        return min(_RETRY_LATER * 2.0 ** (failures - 1), _RETRY_LONGEST)
    return _RETRY_SOON if reason == Reason.ADAPTER_NOT_FOUND else _RETRY_LATER


def one_at_a_time(world: World) -> Step | None:
    """Loading goes one adapter after the other, beside serving."""
    if world.busy_with is not None:
        return None
    return check_base(world) or check(world) or load(world) or fetch(world)


RULES = (route, unload, remove, one_at_a_time)


def fetched(world: World) -> list[tuple[WantedAdapter, str]]:
    """Admitted adapters whose bytes are here."""
    pairs = [(adapter, world.version_of(adapter)) for adapter in world.admitted]
    return [(adapter, version) for adapter, version in pairs if version is not None]


def needed(world: World) -> frozenset[str]:
    """Versions that a spec asks for or a name leads to."""
    return frozenset(version for _, version in fetched(world)) | frozenset(world.state.desired.aliases.values())


def desired_state(world: World) -> DesiredState:
    """Where each public name leads. The old version keeps a name until the new one has passed its check.

    A slot that sleeps has no names: what it wakes with may be old by then.
    """
    if world.rest is not None and (world.rest.wanted is True or (world.state.desired.asleep and not world.rest.proven)):
        return DesiredState(draining=world.draining, asleep=True)
    aliases: dict[str, str] = {}
    unavailable: dict[str, Unavailable] = {}
    for adapter in world.admitted:
        live = (world.version_of(adapter), world.state.desired.aliases.get(adapter.name))
        if version := next((version for version in live if version and world.answers(version)), None):
            aliases[adapter.name] = version
        else:
            told = report_of(world, adapter)
            reason = told.reason or Reason.LOADING
            unavailable[adapter.name] = Unavailable(reason=reason, message=told.message or Reason.LOADING.meaning)
    for adapter in (*world.failing, *world.refused):
        told = report_of(world, adapter)
        unavailable[adapter.name] = Unavailable(reason=told.reason, message=told.message)
    return DesiredState(aliases=aliases, unavailable=unavailable, draining=world.draining)


def settled(world: World) -> bool:
    """Whether the base model answers and every adapter is loaded or has failed: what a slot needs to become ready."""
    return world.base_answers and all(told.state != LoadedState.LOADING for told in reports(world))


def reports(world: World) -> tuple[LoadedAdapter, ...]:
    """Each adapter of this engine as this slot has it."""
    return tuple(report_of(world, adapter) for adapter in (*world.admitted, *world.failing, *world.refused))


def report_of(world: World, adapter: WantedAdapter) -> LoadedAdapter:
    """One adapter as this slot has it."""
    live = world.state.desired.aliases.get(adapter.name)
    if adapter in world.refused:
        return _told(adapter, _no_place(world), live)
    match world.findings.get(adapter.key):
        case Failed() as failed:
            return _told(adapter, failed, live)
        case Fetched(version) if live == version and world.answers(version):
            return _loaded(adapter, LoadedState.LOADED, version)
        case Fetched(version):
            return _loaded(adapter, LoadedState.LOADING, version)
    return _loaded(adapter, LoadedState.LOADING, "")


def _loaded(adapter: WantedAdapter, state: LoadedState, version: str) -> LoadedAdapter:
    return LoadedAdapter(name=adapter.name, generation=adapter.key.generation, state=state, version=version)


def _told(adapter: WantedAdapter, failed: Failed, live: str | None) -> LoadedAdapter:
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


def _no_place(world: World) -> Failed:
    if world.places == 0:
        return Failed(
            Reason.ENGINE_TAKES_NO_ADAPTERS, "The engine has no spec.lora: set it, or publish elsewhere.", world.now
        )
    oldest = ", ".join(adapter.name for adapter in world.admitted)
    message = f"lora.maxAdapters is {world.places}, and {oldest} came first. Delete one, or raise it."
    return Failed(Reason.TOO_MANY_ADAPTERS, message, world.now)
