"""The one owner of a slot's sleep: the pod stays while its GPUs are lent, and vLLM frees their memory.

Everybody else asks this module: `plan.py` for the next step and whether the slot serves, `slot.py` for what to report,
`reconcile.py` whether to drain. The middleware and the start gate (start_gate.py) do what it decides.

`SleepState` is pure: what was observed, and what follows. `SleepController` observes and acts. The states (`Phase`):

    AWAKE           Requests are served, or vLLM loads what it will serve.
    FALLING_ASLEEP  The status says that the GPUs are a trainer's. Requests are refused, the answers of the wake check
                    recorded, and vLLM is put to sleep. Ends when NVML shows that the memory is free.
    ASLEEP          The memory is free, and reported so: the operator may bind the trainer's pod.
    WAKING          The status says that the GPUs are the slot's own again. vLLM wakes and has to pass the wake check
                    before it is AWAKE. One that fails is ended, and its container restarts.
    HELD            vLLM has not started: the start gate holds it until the GPUs are the slot's own. A vLLM that
                    restarts while it sleeps comes here, and counts as asleep while the GPUs are a trainer's.
    UNDECIDED       Requests are refused, and the status does not say whose the GPUs are: everything stays as it is.

After a restart of the agent the state follows again from the status, vLLM, and the file of the wake check.
"""

import logging
from dataclasses import dataclass
from enum import Enum, auto

from sluice_api.inferenceengine import ASLEEP, AWAKE, SlotState
from sluice_api.slots import SlotSpec
from sluice_server.agent.adapter_cache import AdapterCache
from sluice_server.agent.rejected import AdapterRejected, CanaryFailed
from sluice_server.agent.resources import Body, slot_status
from sluice_server.agent.vllm_client import CANARY_TOKENS, Observation, Unreachable, VLLMClient
from sluice_server.agent.wake_check import WakeCheck, differs
from sluice_server.control import ObservedState

log = logging.getLogger(__name__)

REMAINDER = 0.2
"""The part of what gpuMemoryUtilization let vLLM take of a GPU that may still be in use when it sleeps: its CUDA
context, graphs and communicators stay (7 of 166 GB on a GB200: vllm#47654), weights and KV cache must not."""

_NO_SLEEP_MODE = (
    "This replica can't sleep: its vLLM was started before preemption.policy was Sleep, or runs on CPUs, where vLLM "
    "has no sleep mode."
)


class Phase(Enum):
    """Where a slot is in its sleep; the module's docstring says what each means."""

    AWAKE = auto()
    FALLING_ASLEEP = auto()
    ASLEEP = auto()
    WAKING = auto()
    HELD = auto()
    UNDECIDED = auto()


@dataclass(frozen=True)
class Start:
    """Open the start gate."""


@dataclass(frozen=True)
class Sleep:
    """Record the answers of the wake check and put vLLM to sleep; `abort` ends the requests that are in flight."""

    abort: bool


@dataclass(frozen=True)
class Wake:
    """Wake vLLM and let it pass the wake check."""


@dataclass(frozen=True)
class SleepState:
    """What was observed of a slot's sleep at one moment, and what follows from it."""

    can_sleep: bool = False
    """Whether vLLM was started with sleep mode."""
    must_sleep: bool | None = None
    """Whether the status gives the GPUs to a trainer (True) or to the slot (False); None if it says neither."""
    held: bool = False
    """Whether the start gate holds vLLM's start."""
    requests_refused: bool = False
    """Whether the middleware refuses requests for the sleep."""
    vllm_sleeps: bool = False
    """What vLLM says, which proves nothing about memory (vllm#47654)."""
    memory_in_use: str = ""
    """Why the memory of a sleeping vLLM does not count as free; empty when it does."""
    fault: str = ""
    """Why the last try to put vLLM to sleep failed."""
    passed_wake_check: bool = False
    """Whether vLLM has passed the wake check since it last had to sleep."""

    @property
    def phase(self) -> Phase:
        """The state, as the module's docstring describes it."""
        if not self.can_sleep or not (self.held or self.requests_refused or self.must_sleep):
            return Phase.AWAKE
        if self.held:
            return Phase.HELD
        if self.must_sleep:
            return Phase.FALLING_ASLEEP if self.awake_because else Phase.ASLEEP
        return Phase.UNDECIDED if self.must_sleep is None else Phase.WAKING

    @property
    def awake_because(self) -> str:
        """Why a slot that must sleep is not asleep; empty when it is asleep, or need not be."""
        if not self.can_sleep:
            return _NO_SLEEP_MODE if self.must_sleep else ""
        if not self.must_sleep or self.held:
            return ""
        if not (self.vllm_sleeps and self.requests_refused):
            return self.fault or "vLLM is about to sleep."
        return self.memory_in_use

    @property
    def asleep(self) -> bool:
        """Whether to report that vLLM takes no memory of GPUs that are a trainer's."""
        return self.can_sleep and self.must_sleep is True and not self.awake_because

    @property
    def must_refuse(self) -> bool:
        """Whether the middleware has to refuse requests: from before vLLM sleeps until it has passed the wake check."""
        return self.can_sleep and (self.must_sleep is True or (self.requests_refused and not self.passed_wake_check))

    @property
    def progress(self) -> str:
        """What a slot that does not serve is doing, for its message."""
        return "vLLM is not started yet." if self.held else "vLLM sleeps, or wakes."

    def next_step(self, in_flight: int) -> Start | Sleep | Wake | None:
        """The next step into sleep or out of it; None when there is none.

        Args:
            in_flight: requests inside vLLM. A drain came first, so those that are left have used up their time.
        """
        match self.phase:
            case Phase.HELD if self.must_sleep is False:
                return Start()
            case Phase.FALLING_ASLEEP if self.requests_refused and not self.vllm_sleeps:
                return Sleep(abort=in_flight > 0)
            case Phase.WAKING if not self.passed_wake_check:
                return Wake()
        return None


def must_sleep(engine: Body | None, index: int) -> bool | None:
    """Whether the engine's status gives the slot's GPUs to a trainer (True) or to the slot (False); None for neither.

    The pod that the status names does not matter: a pod that has replaced it has the same GPUs.
    """
    state = slot_status(engine, index).get("state")
    return True if state in ASLEEP else False if state in AWAKE else None


def memory_in_use(state: ObservedState, utilization: str) -> str:
    """Why the memory of a sleeping vLLM does not count as free, for the slot's message; empty when it does.

    Args:
        state: the middleware's state, with the memory of the pod's GPUs.
        utilization: serving.gpuMemoryUtilization of the engine.
    """
    if not state.memory:
        return "vLLM sleeps, but NVML does not say how much memory of its GPUs is in use."
    for number, memory in enumerate(state.memory):
        most = REMAINDER * float(utilization) * memory.total
        if memory.used > most:
            return (
                f"vLLM sleeps, but {_gib(memory.used)} of {_gib(memory.total)} GiB of GPU {number} are in use; at most "
                f"{_gib(most)} may be."
            )
    return ""


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"


class SleepController:
    """Observes the sleep of one slot, puts its vLLM to sleep, and wakes it."""

    def __init__(self, spec: SlotSpec, vllm: VLLMClient, cache: AdapterCache, wake_check: WakeCheck) -> None:
        self._spec, self._vllm, self._cache, self._wake_check = spec, vllm, cache, wake_check
        self._fault = ""
        self._memory_was_free = self._passed_wake_check = False

    def must_drain(self, engine: Body | None) -> bool:
        """Whether the slot has to drain because it must sleep."""
        return bool(self._spec.sleep_level and must_sleep(engine, self._spec.index))

    def observe(self, observation: Observation, engine: Body | None) -> SleepState:
        """The state of the slot's sleep, from vLLM's answers and the engine with its status."""
        wanted = must_sleep(engine, self._spec.index)
        if not self._spec.sleep_level:
            return SleepState(must_sleep=wanted)
        if wanted:
            self._passed_wake_check = False
        else:
            self._memory_was_free, self._fault = False, ""
        state = observation.state
        in_use = ""
        if wanted and observation.sleeping and state.desired.asleep and not self._is_known_to_be_free(engine):
            in_use = memory_in_use(state, self._spec.spec.serving.gpu_memory_utilization)
            self._memory_was_free = not in_use
        return SleepState(
            can_sleep=True,
            must_sleep=wanted,
            held=state.held,
            requests_refused=state.desired.asleep,
            vllm_sleeps=observation.sleeping,
            memory_in_use=in_use,
            fault=self._fault,
            passed_wake_check=self._passed_wake_check,
        )

    def _is_known_to_be_free(self, engine: Body | None) -> bool:
        """Whether the memory was free before: once the slot is lent, NVML counts the trainer's memory too."""
        lent = slot_status(engine, self._spec.index).get("state") in ASLEEP - {SlotState.SLEEPING}
        return self._memory_was_free or lent

    async def fall_asleep(self, boot: str, versions: frozenset[str], *, abort: bool) -> None:
        """Record how the base model and these versions answer, and put vLLM to sleep.

        Raises:
            CanaryFailed: one of them does not answer as it must.
            Unreachable: vLLM does not answer.
            OSError: the answers can't be written.
        """
        try:
            if self._wake_check.recorded(boot) is None:
                names = [self._spec.engine, *sorted(versions)]
                answers = {name: await self._vllm.canary(name, CANARY_TOKENS) for name in names}
                self._wake_check.record(boot, answers)
            await self._vllm.sleep(abort=abort)
            self._fault = ""
            log.info("vLLM sleeps")
        except (CanaryFailed, Unreachable, OSError) as error:
            self._fault = f"vLLM does not go to sleep: {error}"[:1024]
            log.warning("%s", self._fault)
            raise

    async def wake(self, observation: Observation) -> None:
        """Wake vLLM and compare its answers with those from before. If that fails, end vLLM: the kubelet restarts it.

        Raises:
            AdapterRejected: vLLM does not load an adapter again.
            CanaryFailed: a model does not answer, or otherwise than before.
            Unreachable: vLLM does not answer.
            OSError: the answers can't be read.
        """
        try:
            await self._wake(observation)
        except (AdapterRejected, CanaryFailed, Unreachable, OSError):
            log.exception("vLLM has not woken well, and is ended")
            await self._vllm.end()
            raise
        self._wake_check.discard()
        self._passed_wake_check = True
        log.info("vLLM is awake, and answers as before")

    async def _wake(self, observation: Observation) -> None:
        recorded = self._wake_check.recorded(observation.state.boot)
        if recorded is None and observation.sleeping:
            raise CanaryFailed("How it answered before it slept is not known.")
        if recorded is None:
            return  # It did not come to sleep: the status changed before.
        await self._vllm.wake()
        if self._spec.sleep_level > 1:
            await self._reload(observation.loaded)
        for name, before in recorded.items():
            after = await self._vllm.canary(name, CANARY_TOKENS)
            if differs(before, after):
                raise CanaryFailed(f"{name} said {before} before it slept, and says {after} now.")

    async def _reload(self, versions: frozenset[str]) -> None:
        """Load adapters again: level 2 drops their weights with those of the base model."""
        for version in sorted(versions):
            await self._vllm.unload(version)
            await self._vllm.load(version, self._cache.path(version))
