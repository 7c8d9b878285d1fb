"""The agent's HTTP client of this pod's vLLM: its adapter and sleep routes, and the middleware's control routes."""

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
from pydantic import ValidationError

from sluice_api.reasons import Reason
from sluice_server.agent.rejected import AdapterRejected, CanaryFailed
from sluice_server.control import AdapterLayers, DesiredState, ObservedState
from sluice_server.paths import END_PATH, LAYERS_PATH, SECRET_HEADER, START_PATH, STATE_PATH

CANARY_TOKENS = 8
"""Tokens that a canary request generates where two answers are compared."""
_TIMEOUT = aiohttp.ClientTimeout(total=5)
_LOAD_TIMEOUT = aiohttp.ClientTimeout(total=300)
_CANARY_TIMEOUT = aiohttp.ClientTimeout(total=120)


class Unreachable(Exception):
    """vLLM gave no answer, or none that is understood: it is starting, stopping or dead."""


class NotListening(Unreachable):
    """Nothing listens on vLLM's port: vLLM has not started yet, or has ended."""


@dataclass(frozen=True)
class Observation:
    """The answers of vLLM and its middleware at one moment."""

    state: ObservedState
    loaded: frozenset[str]
    healthy: bool
    sleeping: bool = False


class Answer(NamedTuple):
    """A model's answer to the canary request: `numbers` are its tokens' log-probabilities, or an embedding."""

    text: str
    numbers: tuple[float, ...]


class VLLMClient:
    """Speaks to the vLLM of this pod, with the pod's secret.

    Args:
        port: vLLM's port in this pod.
        secret: what opens the routes that the middleware keeps for the agent.
        base: the base model's name in vLLM.
        embeds: whether the engine's task is Embed; the canary request is an embedding then.
        sleep_level: vLLM's sleep level; 0 for an engine that never sleeps, whose vLLM has no sleep routes.
    """

    def __init__(self, port: int, secret: str, base: str, *, embeds: bool, sleep_level: int = 0) -> None:
        self._base, self._embeds, self._sleep_level = base, embeds, sleep_level
        self._session = aiohttp.ClientSession(
            f"http://127.0.0.1:{port}", headers={SECRET_HEADER: secret}, timeout=_TIMEOUT
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def observe(self) -> Observation:
        """Read what vLLM has loaded, its health, whether it sleeps, and the middleware's state.

        Raises:
            Unreachable: vLLM does not answer.
        """
        status, state = await self._ask("GET", STATE_PATH)
        if status != 200:
            raise Unreachable(f"GET {STATE_PATH} was answered with {status}: is the middleware in front?")
        if isinstance(state, dict) and state.get("held"):
            # The start gate answers in vLLM's place, and has none of its other routes.
            return Observation(ObservedState.model_validate(state), frozenset(), healthy=True)
        status, models = await self._ask("GET", "/v1/models")
        if status != 200:
            raise Unreachable(f"GET /v1/models was answered with {status}")
        health, _ = await self._ask("GET", "/health")
        asleep = await self._ask("GET", "/is_sleeping") if self._sleep_level else (200, {"is_sleeping": False})
        if asleep[0] != 200:
            raise Unreachable(f"GET /is_sleeping was answered with {asleep[0]}: {_error_message(asleep[1])}")
        try:
            loaded = frozenset(card["id"] for card in models["data"]) - {self._base}
            sleeping = bool(asleep[1]["is_sleeping"])
            return Observation(ObservedState.model_validate(state), loaded, health == 200, sleeping)
        except (ValidationError, KeyError, TypeError) as error:
            raise Unreachable(f"vLLM's answer is not understood: {error}") from error

    async def put_state(self, desired: DesiredState) -> None:
        """Give the middleware the names and modes that apply to requests from now on."""
        status, answer = await self._ask("PUT", STATE_PATH, desired.model_dump(mode="json", by_alias=True))
        if status != 200:
            raise Unreachable(f"PUT {STATE_PATH} was answered with {status}: {_error_message(answer)}")

    async def load(self, version: str, folder: Path) -> None:
        """Load an adapter version from a folder.

        Raises:
            AdapterRejected: vLLM answers with an error.
        """
        body = {"lora_name": version, "lora_path": str(folder)}
        status, answer = await self._ask("POST", "/v1/load_lora_adapter", body, _LOAD_TIMEOUT)
        if status == 400 and "already been loaded" in _error_message(answer):
            return  # An earlier call got through after all; a version's bytes never change.
        if status != 200:
            raise AdapterRejected(Reason.LOAD_FAILED, f"vLLM refused {version}: {_error_message(answer)}")

    async def unload(self, version: str) -> None:
        """Unload an adapter version. One that is not loaded is no error."""
        status, answer = await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": version})
        if status not in (200, 404):
            raise Unreachable(f"vLLM did not unload {version}: {_error_message(answer)}")

    async def check_answers(self, model: str) -> None:
        """Check that a version, or the base model, answers with finite numbers: vLLM serves NaN without an error.

        Raises:
            CanaryFailed: the model does not answer, or its numbers are not finite.
        """
        await self.canary(model, tokens=1)

    async def check_effect(self, version: str) -> None:
        """Check that a version answers otherwise than the base model.

        vLLM loads an adapter of which it uses no layer, and the base model answers under its name (vllm#55193, #41754).

        Raises:
            AdapterRejected: its numbers are the base model's.
            CanaryFailed: one of the two does not answer, or its numbers are not finite.
        """
        if await self.canary(version, CANARY_TOKENS) != await self.canary(self._base, CANARY_TOKENS):
            return
        found = AdapterLayers.model_validate(await self._request("POST", LAYERS_PATH, {"version": version}))
        if found.passed_over:
            shown = ", ".join(found.passed_over[:3]) + (", ..." if len(found.passed_over) > 3 else "")
            why = (
                f"vLLM passed over {len(found.passed_over)} of its {found.layers} layers ({shown}): it has none of "
                "these names. Train for the model as vLLM names its layers, or serve it with another engine."
            )
        else:
            why = f"vLLM uses all its {found.layers} layers, and they change nothing. Train longer."
        raise AdapterRejected(
            Reason.ADAPTER_WITHOUT_EFFECT, f"{version} answers with the numbers of the base model. {why}"
        )

    async def canary(self, model: str, tokens: int) -> Answer:
        """Send the canary request, which is always the same, to a version or the base model, and return the answer.

        Raises:
            CanaryFailed: the model does not answer, or its numbers are not finite.
        """
        if self._embeds:
            path = "/v1/embeddings"
            body: dict[str, Any] = {"model": model, "input": "a"}
        else:
            path = "/v1/completions"
            body = {"model": model, "prompt": "a", "max_tokens": tokens, "temperature": 0, "logprobs": 1}
        status, answer = await self._ask("POST", path, body, _CANARY_TIMEOUT)
        if status != 200:
            raise CanaryFailed(f"{model} was asked for one token: {status} {_error_message(answer)}")
        numbers = _numbers(answer)
        if not _all_finite(numbers):
            raise CanaryFailed(f"{model} answers with NaN or infinite numbers: train it again.")
        return Answer("" if self._embeds else str(answer["choices"][0].get("text")), tuple(map(float, numbers)))

    async def open_start_gate(self) -> None:
        """Let vLLM start, which the start gate holds back."""
        await self._request("POST", START_PATH)

    async def end(self) -> None:
        """End vLLM's process. The kubelet restarts its container."""
        with suppress(Unreachable):  # The process may end before it has answered.
            await self._ask("POST", END_PATH)

    async def sleep(self, *, abort: bool) -> None:
        """Have vLLM free the memory of its GPUs, when its last request has ended; `abort` ends the requests now."""
        mode = "abort" if abort else "wait"
        await self._request("POST", f"/sleep?level={self._sleep_level}&mode={mode}", limit=_LOAD_TIMEOUT)

    async def wake(self) -> None:
        """Have vLLM take the memory again and restore the weights. Nothing happens to a vLLM that is awake."""
        if self._sleep_level == 1:
            await self._request("POST", "/wake_up", limit=_LOAD_TIMEOUT)
            return
        await self._request("POST", "/wake_up?tags=weights", limit=_LOAD_TIMEOUT)
        await self._request("POST", "/collective_rpc", {"method": "reload_weights"}, _LOAD_TIMEOUT)
        await self._request("POST", "/wake_up?tags=kv_cache", limit=_LOAD_TIMEOUT)

    async def _request(self, method: str, path: str, body: Any = None, limit: aiohttp.ClientTimeout = _TIMEOUT) -> Any:
        """The answer's body.

        Raises:
            Unreachable: there is no answer, or its status is not 200.
        """
        status, answer = await self._ask(method, path, body, limit)
        if status != 200:
            raise Unreachable(f"{method} {path} was answered with {status}: {_error_message(answer)}")
        return answer

    async def _ask(
        self, method: str, path: str, body: Any = None, limit: aiohttp.ClientTimeout = _TIMEOUT
    ) -> tuple[int, Any]:
        try:
            async with self._session.request(method, path, json=body, timeout=limit) as answer:
                if answer.content_type == "application/json":
                    return answer.status, await answer.json()
                return answer.status, await answer.text()
        except aiohttp.ClientConnectorError as error:
            raise NotListening(f"{method} {path}: {error!r}") from error
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unreachable(f"{method} {path}: {error!r}") from error


def _error_message(answer: Any) -> str:
    """The message in an OpenAI error body; the start of any other body."""
    try:
        return str(answer["error"]["message"])
    except (KeyError, TypeError):
        return str(answer)[:500]


def _numbers(answer: Any) -> list[Any]:
    """The embedding or the log-probabilities in an answer; empty where it has neither."""
    try:
        if "data" in answer:
            return list(answer["data"][0]["embedding"])
        return list(answer["choices"][0]["logprobs"]["token_logprobs"])
    except (KeyError, IndexError, TypeError):
        return []


def _all_finite(numbers: list[Any]) -> bool:
    return bool(numbers) and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
