"""Puts the slot's vLLM to sleep and wakes it, and knows whether it takes memory of its GPUs."""

import logging

from sluice_api.slots import SlotSpec
from sluice_server.agent.adapter_cache import AdapterCache
from sluice_server.agent.rejected import AdapterRejected, CanaryFailed
from sluice_server.agent.rest import Canaries, Rest, changed, still_held
from sluice_server.agent.vllm_client import CANARY_TOKENS, Observation, Unreachable, VLLMClient
from sluice_server.agent.wanted import Body, is_lent, must_sleep

log = logging.getLogger(__name__)

_NO_SLEEP_MODE = (
    "This replica can't sleep: its vLLM was started before preemption.policy was Sleep, or runs on CPUs, where vLLM "
    "has no sleep mode."
)


class Sleeper:
    """The sleep of one slot. After a restart of the agent it starts from what vLLM, status and disk say."""

    def __init__(self, spec: SlotSpec, vllm: VLLMClient, cache: AdapterCache, canaries: Canaries) -> None:
        self._spec, self._vllm, self._cache, self._canaries = spec, vllm, cache, canaries
        self._fault = ""
        self._freed = self._proven = False

    def rest(self, observation: Observation, said: Body | None) -> Rest | None:
        """What is asked of the slot and what it does; None for one that can't sleep."""
        if not self._spec.sleep_level:
            return None
        wanted = must_sleep(said, self._spec.index)
        if wanted is True:
            self._proven = False
        else:
            self._freed, self._fault = False, ""
        return Rest(wanted, observation.sleeping, self._proven)

    def awake_because(self, observation: Observation, rest: Rest | None, said: Body | None) -> str:
        """Why a slot that is to sleep may have memory of its GPUs; empty when it has none, or is not to sleep.

        Proven once: as soon as the slot is lent, what NVML counts is the trainer's.
        """
        if rest is None:
            return _NO_SLEEP_MODE if must_sleep(said, self._spec.index) else ""
        if rest.wanted is not True or observation.state.held:
            return ""
        if not (rest.sleeping and observation.state.desired.asleep):
            return self._fault or "vLLM is about to sleep."
        if self._freed or is_lent(said, self._spec.index):
            return ""
        why = still_held(observation.state, self._spec.spec.serving.gpu_memory_utilization)
        self._freed = not why
        return why

    async def fall_asleep(self, boot: str, versions: frozenset[str], *, abort: bool) -> None:
        """Remember how the base model and these versions answer, and put vLLM to sleep."""
        try:
            if self._canaries.of(boot) is None:
                names = [self._spec.engine, *sorted(versions)]
                answers = {name: await self._vllm.canary(name, CANARY_TOKENS) for name in names}
                self._canaries.keep(boot, answers)
            await self._vllm.sleep(abort=abort)
            self._fault = ""
            log.info("vLLM sleeps")
        except (CanaryFailed, Unreachable, OSError) as error:
            self._fault = f"vLLM does not go to sleep: {error}"[:1024]
            log.warning("%s", self._fault)
            raise

    async def wake(self, observation: Observation) -> None:
        """Wake vLLM and let it prove that it is what it was. One that fails is ended: the kubelet starts it anew."""
        try:
            await self._wake(observation)
        except (AdapterRejected, CanaryFailed, Unreachable, OSError):
            log.exception("vLLM has not woken well, and is ended")
            await self._vllm.end()
            raise
        self._canaries.forget()
        self._proven = True
        log.info("vLLM is awake, and answers as before")

    async def _wake(self, observation: Observation) -> None:
        kept = self._canaries.of(observation.state.boot)
        if kept is None and observation.sleeping:
            raise CanaryFailed("How it answered before it slept is not known.")
        if kept is None:
            return  # it has not slept: it was asked to, and did not come to it
        await self._vllm.wake()
        if self._spec.sleep_level > 1:
            await self._load_anew(observation.loaded)
        for name, before in kept.items():
            after = await self._vllm.canary(name, CANARY_TOKENS)
            if changed(before, after):
                raise CanaryFailed(f"{name} said {before} before it slept, and says {after} now.")

    async def _load_anew(self, versions: frozenset[str]) -> None:
        """Level 2 has dropped the adapters' weights with all others."""
        for version in sorted(versions):
            await self._vllm.unload(version)
            await self._vllm.load(version, self._cache.path(version))
