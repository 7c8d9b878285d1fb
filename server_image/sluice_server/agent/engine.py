"""The agent's way to vLLM: its adapter routes and the middleware's control routes, with the pod's secret."""

import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from pydantic import ValidationError

from sluice_api.reasons import Reason
from sluice_server.agent.refusal import Refusal
from sluice_server.control import DesiredState, ObservedState
from sluice_server.place import SECRET_HEADER, STATE_PATH

_ANSWER = aiohttp.ClientTimeout(total=5)
_LOADING = aiohttp.ClientTimeout(total=300)
_CHECKING = aiohttp.ClientTimeout(total=120)


class Unreachable(Exception):
    """vLLM does not answer, or not as it should: it is starting, stopping or dead."""


@dataclass(frozen=True)
class Observation:
    """vLLM at one moment."""

    state: ObservedState
    loaded: frozenset[str]
    healthy: bool


class Engine:
    """vLLM of this pod."""

    def __init__(self, port: int, secret: str, base: str, *, embeds: bool) -> None:
        self._base, self._embeds = base, embeds
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
        status, models = await self._ask("GET", "/v1/models")
        if status != 200:
            raise Unreachable(f"GET /v1/models was answered with {status}")
        health, _ = await self._ask("GET", "/health")
        try:
            loaded = frozenset(card["id"] for card in models["data"]) - {self._base}
            return Observation(ObservedState.model_validate(state), loaded, health == 200)
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
        if self._embeds:
            path = "/v1/embeddings"
            body: dict[str, Any] = {"model": version, "input": "a"}
        else:
            path = "/v1/completions"
            body = {"model": version, "prompt": "a", "max_tokens": 1, "temperature": 0, "logprobs": 1}
        status, answer = await self._ask("POST", path, body, _CHECKING)
        if status != 200:
            raise Refusal(Reason.CANARY_FAILED, f"{version} was asked for one token: {status} {_words(answer)}")
        if not _all_finite(_numbers(answer)):
            raise Refusal(Reason.CANARY_FAILED, f"{version} answers with NaN or infinite numbers: train it again.")

    async def _ask(
        self, method: str, path: str, body: Any = None, patience: aiohttp.ClientTimeout = _ANSWER
    ) -> tuple[int, Any]:
        try:
            async with self._session.request(method, path, json=body, timeout=patience) as answer:
                if answer.content_type == "application/json":
                    return answer.status, await answer.json()
                return answer.status, await answer.text()
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
