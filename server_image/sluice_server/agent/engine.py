"""The agent's way to vLLM: its adapter routes and the middleware's control routes, with the pod's secret."""

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
from pydantic import ValidationError

from sluice_api.reasons import Reason
from sluice_server.agent.refusal import Refusal
from sluice_server.control import AdapterLayers, DesiredState, ObservedState
from sluice_server.place import END_PATH, LAYERS_PATH, SECRET_HEADER, START_PATH, STATE_PATH

CANARY_TOKENS = 8
"""So many are compared where it matters whether two answers are the same."""
_ANSWER = aiohttp.ClientTimeout(total=5)
_LOADING = aiohttp.ClientTimeout(total=300)
_CHECKING = aiohttp.ClientTimeout(total=120)


class Unreachable(Exception):
    """vLLM does not answer, or not as it should: it is starting, stopping or dead."""


class NobodyListens(Unreachable):
    """There is no vLLM at all now: it is not started yet, or has ended."""


@dataclass(frozen=True)
class Observation:
    """vLLM at one moment."""

    state: ObservedState
    loaded: frozenset[str]
    healthy: bool
    sleeping: bool = False


class Answer(NamedTuple):
    """What a model says, and how sure it is of it: log-probabilities of its tokens; or the numbers of an embedding."""

    text: str
    numbers: tuple[float, ...]


class Engine:
    """vLLM of this pod."""

    def __init__(self, port: int, secret: str, base: str, *, embeds: bool, sleep_level: int = 0) -> None:
        self._base, self._embeds, self._sleep_level = base, embeds, sleep_level
        self._session = aiohttp.ClientSession(
            f"http://127.0.0.1:{port}", headers={SECRET_HEADER: secret}, timeout=_ANSWER
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def observe(self) -> Observation:
        """Ask vLLM how it is.

        Raises:
            Unreachable: it does not answer.
        """
        status, state = await self._ask("GET", STATE_PATH)
        if status != 200:
            raise Unreachable(f"GET {STATE_PATH} was answered with {status}: is the middleware in front?")
        if isinstance(state, dict) and state.get("held"):
            return Observation(ObservedState.model_validate(state), frozenset(), healthy=True)
        status, models = await self._ask("GET", "/v1/models")
        if status != 200:
            raise Unreachable(f"GET /v1/models was answered with {status}")
        health, _ = await self._ask("GET", "/health")
        asleep = await self._ask("GET", "/is_sleeping") if self._sleep_level else (200, {"is_sleeping": False})
        if asleep[0] != 200:
            raise Unreachable(f"GET /is_sleeping was answered with {asleep[0]}: {_words(asleep[1])}")
        try:
            loaded = frozenset(card["id"] for card in models["data"]) - {self._base}
            sleeping = bool(asleep[1]["is_sleeping"])
            return Observation(ObservedState.model_validate(state), loaded, health == 200, sleeping)
        except (ValidationError, KeyError, TypeError) as error:
            raise Unreachable(f"vLLM's answer is not understood: {error}") from error

    async def put(self, desired: DesiredState) -> None:
        """Make requests meet this from now on."""
        status, answer = await self._ask("PUT", STATE_PATH, desired.model_dump(mode="json", by_alias=True))
        if status != 200:
            raise Unreachable(f"PUT {STATE_PATH} was answered with {status}: {_words(answer)}")

    async def load(self, version: str, folder: Path) -> None:
        """Load an adapter.

        Raises:
            Refusal: vLLM does not want it.
        """
        body = {"lora_name": version, "lora_path": str(folder)}
        status, answer = await self._ask("POST", "/v1/load_lora_adapter", body, _LOADING)
        if status == 400 and "already been loaded" in _words(answer):
            return  # An earlier call got through after all; a version's bytes never change.
        if status != 200:
            raise Refusal(Reason.LOAD_FAILED, f"vLLM refused {version}: {_words(answer)}")

    async def unload(self, version: str) -> None:
        """Unload an adapter; one that is not there is fine."""
        status, answer = await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": version})
        if status not in (200, 404):
            raise Unreachable(f"vLLM did not unload {version}: {_words(answer)}")

    async def check(self, version: str) -> None:
        """Let a version, or the base model, answer once, and look at the numbers: vLLM serves NaN without a word.

        Raises:
            Refusal: it does not answer, or not with numbers.
        """
        await self.answer(version, tokens=1)

    async def check_effect(self, version: str) -> None:
        """Let a version answer, and compare its numbers with the base model's: vLLM loads an adapter of which it uses
        no layer, and lets the base model answer in its name (vllm#55193, #41754).

        Raises:
            Refusal: it does not answer, not with numbers, or as the base model does.
        """
        mine = await self.answer(version, CANARY_TOKENS)
        if mine != await self.answer(self._base, CANARY_TOKENS):
            return
        found = AdapterLayers.model_validate(await self._must("POST", LAYERS_PATH, {"version": version}))
        if found.passed_over:
            shown = ", ".join(found.passed_over[:3]) + (", ..." if len(found.passed_over) > 3 else "")
            why = (
                f"vLLM passed over {len(found.passed_over)} of its {found.layers} layers ({shown}): it has none of "
                "these names. Train for the model as vLLM names its layers, or serve it with another engine."
            )
        else:
            why = f"vLLM uses all its {found.layers} layers, and they change nothing. Train longer."
        raise Refusal(Reason.ADAPTER_WITHOUT_EFFECT, f"{version} answers with the numbers of the base model. {why}")

    async def answer(self, version: str, tokens: int) -> Answer:
        """What a version, or the base model, says first, always to the same question.

        Raises:
            Refusal: it does not answer, or not with numbers.
        """
        if self._embeds:
            path = "/v1/embeddings"
            body: dict[str, Any] = {"model": version, "input": "a"}
        else:
            path = "/v1/completions"
            body = {"model": version, "prompt": "a", "max_tokens": tokens, "temperature": 0, "logprobs": 1}
        status, answer = await self._ask("POST", path, body, _CHECKING)
        if status != 200:
            raise Refusal(Reason.CANARY_FAILED, f"{version} was asked for one token: {status} {_words(answer)}")
        numbers = _numbers(answer)
        if not _all_finite(numbers):
            raise Refusal(Reason.CANARY_FAILED, f"{version} answers with NaN or infinite numbers: train it again.")
        return Answer("" if self._embeds else str(answer["choices"][0].get("text")), tuple(map(float, numbers)))

    async def start(self) -> None:
        """Let a vLLM start that is held back."""
        await self._must("POST", START_PATH)

    async def end(self) -> None:
        """End vLLM; the kubelet starts it anew."""
        with suppress(Unreachable):  # it may be gone before its answer
            await self._ask("POST", END_PATH)

    async def sleep(self, *, abort: bool) -> None:
        """Free the memory of the GPUs, once no request is left; or at once, and end those that are there."""
        mode = "abort" if abort else "wait"
        await self._must("POST", f"/sleep?level={self._sleep_level}&mode={mode}", patience=_LOADING)

    async def wake(self) -> None:
        """Take the memory again, and fill it. A vLLM that is awake stays so."""
        if self._sleep_level == 1:
            await self._must("POST", "/wake_up", patience=_LOADING)
            return
        await self._must("POST", "/wake_up?tags=weights", patience=_LOADING)
        await self._must("POST", "/collective_rpc", {"method": "reload_weights"}, _LOADING)
        await self._must("POST", "/wake_up?tags=kv_cache", patience=_LOADING)

    async def _must(self, method: str, path: str, body: Any = None, patience: aiohttp.ClientTimeout = _ANSWER) -> Any:
        status, answer = await self._ask(method, path, body, patience)
        if status != 200:
            raise Unreachable(f"{method} {path} was answered with {status}: {_words(answer)}")
        return answer

    async def _ask(
        self, method: str, path: str, body: Any = None, patience: aiohttp.ClientTimeout = _ANSWER
    ) -> tuple[int, Any]:
        try:
            async with self._session.request(method, path, json=body, timeout=patience) as answer:
                if answer.content_type == "application/json":
                    return answer.status, await answer.json()
                return answer.status, await answer.text()
        except aiohttp.ClientConnectorError as error:
            raise NobodyListens(f"{method} {path}: {error!r}") from error
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unreachable(f"{method} {path}: {error!r}") from error


def _words(answer: Any) -> str:
    """The message of an error's answer."""
    try:
        return str(answer["error"]["message"])
    except (KeyError, TypeError):
        return str(answer)[:500]


def _numbers(answer: Any) -> list[Any]:
    try:
        if "data" in answer:
            return list(answer["data"][0]["embedding"])
        return list(answer["choices"][0]["logprobs"]["token_logprobs"])
    except (KeyError, IndexError, TypeError):
        return []


def _all_finite(numbers: list[Any]) -> bool:
    return bool(numbers) and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
