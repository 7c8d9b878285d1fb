"""Serve the engine's Adapters in this slot's vLLM: observe, plan, act, for ever and from any state."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Coroutine
from time import monotonic

from sluice_api.reasons import Reason
from sluice_api.slots import SlotSpec
from sluice_server.agent import plan
from sluice_server.agent.adapter_cache import AdapterCache
from sluice_server.agent.attempts import MOST, Attempts
from sluice_server.agent.events import is_set_within
from sluice_server.agent.informer import Informer, adapters_of
from sluice_server.agent.metrics import LOAD_SECONDS, LOADS
from sluice_server.agent.plan import Check, CheckBase, Failed, Fetch, Fetched, Load, Remove, Route, Step, Unload, World
from sluice_server.agent.rejected import AdapterRejected, CanaryFailed
from sluice_server.agent.resources import Body, Key, WantedAdapter, must_drain
from sluice_server.agent.sleep import Sleep, SleepController, Start, Wake
from sluice_server.agent.slot import Slot
from sluice_server.agent.vllm_client import NotListening, Observation, Unreachable, VLLMClient
from sluice_server.agent.wake_check import WakeCheck

log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
_DRAINING_TICK_SECONDS = 0.2


class Reconciler:
    """The control loop of one slot. Its memory only saves work: it may be lost at any moment."""

    def __init__(
        self,
        *,
        spec: SlotSpec,
        pod: str,
        vllm: VLLMClient,
        cache: AdapterCache,
        engines: Informer,
        adapters: Informer,
        slot: Slot,
        wake_check: WakeCheck,
        attempts: Attempts,
        changed: asyncio.Event,
    ) -> None:
        self._spec, self._pod = spec, pod
        self._vllm, self._cache = vllm, cache
        self._engines, self._adapters = engines, adapters
        self._slot = slot
        self._attempts = attempts
        self._sleep = SleepController(spec, vllm, cache, wake_check)
        self._findings: dict[Key, plan.Finding] = {}
        self._failures: Counter[Key] = Counter()
        self._checked: set[str] = set()
        self._base_checked, self._base_fault = False, ""
        self._boot = ""
        self._work: asyncio.Task[None] | None = None  # asyncio keeps only a weak reference to a task
        self._busy_with: str | None = None
        self._changed = changed

    async def run(self) -> None:
        """Reconcile until cancelled."""
        while True:
            self._changed.clear()
            try:
                acted = await self._once()
            except Unreachable as error:
                self._slot.unreachable(str(error), self._must_drain(), not_listening=isinstance(error, NotListening))
                acted = False
            if acted:
                continue
            await is_set_within(self._changed, _DRAINING_TICK_SECONDS if self._slot.is_awaited else _TICK_SECONDS)

    async def _once(self) -> bool:
        """Observe, and take one step; return False when there is nothing to do.

        Raises:
            Unreachable: vLLM does not answer.
        """
        # Both are read before vLLM is asked. A vLLM that is slow to answer must not delay the way out of the endpoints,
        # and the observation may be from before the end of work that was in progress.
        self._slot.must_drain |= self._must_drain()
        busy_with = self._busy_with
        observation = await self._vllm.observe()
        self._notice_restart(observation)
        self._attempts.observed(observation.state.boot, healthy=observation.healthy, busy=busy_with is not None)
        if not (self._engines.synced and self._adapters.synced):
            self._slot.unsynced()
            return False
        world = self._world(observation, busy_with)
        self._slot.observed(world, healthy=observation.healthy, base_fault=self._base_fault)
        step = plan.next_step(world)
        if step is None:
            return False
        await self._act(step, observation)
        return True

    def _notice_restart(self, observation: Observation) -> None:
        """After a restart of vLLM, forget which versions have passed their check and which have failed.

        The first observation of a new agent counts as a restart too; live versions have passed their check then.
        """
        if observation.state.boot == self._boot:
            return
        self._boot = observation.state.boot
        self._base_checked = False
        self._checked = set(observation.state.desired.aliases.values())
        self._findings = {key: found for key, found in self._findings.items() if isinstance(found, Fetched)}

    def _world(self, observation: Observation, busy_with: str | None) -> World:
        adapters = adapters_of(self._adapters, self._spec.engine)
        wanted = {adapter.key for adapter in adapters}
        self._cache.keep(frozenset(adapter.name for adapter in adapters))
        self._findings = {key: finding for key, finding in self._findings.items() if key in wanted}
        self._failures = Counter({key: count for key, count in self._failures.items() if key in wanted})
        self._attempts.keep(wanted)
        held = {adapter.key: _held(adapter) for adapter in adapters if self._attempts.held(adapter.key)}
        lora = self._spec.spec.lora
        return World(
            adapters=adapters,
            max_adapters=lora.max_adapters if lora else 0,
            state=observation.state,
            loaded=observation.loaded,
            checked=frozenset(self._checked),
            cached=self._cache.versions(),
            findings=self._findings | held,
            busy_with=busy_with,
            base_checked=self._base_checked,
            draining=observation.state.terminating or self._must_drain(),
            now=monotonic(),
            sleep=self._sleep.observe(observation, self._engine),
        )

    @property
    def _engine(self) -> Body | None:
        """The slot's InferenceEngine; None if it is deleted."""
        return self._engines.objects.get(self._spec.engine)

    def _must_drain(self) -> bool:
        return self._sleep.must_drain(self._engine) or must_drain(self._engine, self._spec.index, self._pod)

    async def _act(self, step: Step, observation: Observation) -> None:
        match step:
            case Route(desired):
                await self._vllm.put_state(desired)
            case Unload(version):
                log.info("unloading %s", version)
                await self._vllm.unload(version)
                self._checked.discard(version)
            case Remove(version):
                await asyncio.to_thread(self._cache.remove, version)
                self._findings = {key: found for key, found in self._findings.items() if found != Fetched(version)}
            case CheckBase():
                self._work_on(self._check_base())
            case Start():
                log.info("vLLM may start")
                await self._vllm.open_start_gate()
            case Sleep(abort):
                versions = observation.loaded & self._checked
                self._work_on(
                    self._change_sleep(self._sleep.fall_asleep(observation.state.boot, versions, abort=abort))
                )
            case Wake():
                self._work_on(self._change_sleep(self._sleep.wake(observation)))
            case Fetch() | Load() | Check():
                self._busy_with = "" if isinstance(step, Fetch) else step.version
                self._attempts.begin(step.adapter.key, "" if isinstance(step, Fetch) else observation.state.boot)
                self._work = asyncio.create_task(self._work_on_adapter(step))

    def _work_on(self, work: Coroutine[None, None, None]) -> None:
        """Begin work that is about no version, beside serving."""
        self._busy_with = ""
        self._work = asyncio.create_task(work)

    async def _change_sleep(self, work: Coroutine[None, None, None]) -> None:
        """Fall asleep or wake. A failure leaves the state as it is, so the same step is planned again."""
        try:
            await work
        except (AdapterRejected, CanaryFailed, Unreachable, OSError):
            await asyncio.sleep(_TICK_SECONDS)
        finally:
            self._busy_with = None
            self._changed.set()

    async def _check_base(self) -> None:
        try:
            await self._vllm.check_answers(self._spec.engine)
            self._base_checked, self._base_fault = True, ""
        except (CanaryFailed, Unreachable) as error:
            self._base_fault = f"The base model does not answer as it should: {error}"[:1024]
            log.warning("%s", self._base_fault)
            await asyncio.sleep(_TICK_SECONDS)
        finally:
            self._busy_with = None
            self._changed.set()

    async def _work_on_adapter(self, step: Fetch | Load | Check) -> None:
        """Fetch, load or check an adapter. The one place where failures become the reasons that users read."""
        adapter = step.adapter
        try:
            with LOAD_SECONDS.labels(type(step).__name__.lower()).time():
                await self._try_step(step)
        except (AdapterRejected, CanaryFailed) as error:
            self._failed(step, error.reason, str(error))
        except Unreachable as error:
            log.warning("%s: %s", adapter.name, error)
            await asyncio.sleep(_TICK_SECONDS)
        except Exception as error:
            log.exception("%s: %s failed", adapter.name, step)
            self._failed(step, Reason.LOAD_FAILED, f"{adapter.uri}: {error!r}. See the agent's log.")
        finally:
            if isinstance(step, Fetch):
                self._attempts.fetched()
            self._busy_with = None
            self._changed.set()

    async def _try_step(self, step: Fetch | Load | Check) -> None:
        match step:
            case Fetch(adapter):
                version = await asyncio.to_thread(self._cache.fetch, adapter)
                log.info("fetched %s from %s as %s", adapter.name, adapter.uri, version)
                self._findings[adapter.key] = Fetched(version)
            case Load(_, version):
                await self._vllm.load(version, self._cache.path(version))
            case Check(adapter, version):
                await self._vllm.check_effect(version)
                log.info("%s answers", version)
                LOADS.labels("loaded").inc()
                self._checked.add(version)

    def _failed(self, step: Fetch | Load | Check, reason: Reason, message: str) -> None:
        log.error("%s: %s: %s", step.adapter.name, reason, message)
        LOADS.labels(reason).inc()
        if reason == Reason.CANARY_FAILED:
            self._base_checked = False  # What an adapter left in the KV cache may have reached it.
        self._failures[step.adapter.key] += 1
        pause = plan.pause_after(reason, self._failures[step.adapter.key])
        version = "" if isinstance(step, Fetch) else step.version
        self._findings[step.adapter.key] = Failed(reason, message, monotonic() + pause, version)


def _held(adapter: WantedAdapter) -> Failed:
    message = (
        f"{adapter.uri}: vLLM or its agent ended {MOST} times while it was fetched, loaded or checked, so it is not "
        "tried again in this pod. Correct it and change the Adapter's source, or delete the Adapter."
    )
    return Failed(Reason.LOAD_FAILED, message, math.inf)
