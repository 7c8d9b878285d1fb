"""Requests to the API server: one connection pool, credentials that are renewed, a time limit for each attempt."""

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from pydantic_core import from_json

from sluice_operator.clock import ahead_of, passing
from sluice_operator.cluster.errors import ApiError

AGENT = "sluice"
JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

READ_SECONDS = 30.0
ATTEMPTS = 5
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0

Body = dict[str, Any]
Patience = Callable[[], float]
"""Called before each attempt: seconds that it may take. If it raises, there is no further attempt."""


def in_cluster() -> bool:
    """Whether this process uses its pod's credentials: it runs in a pod, and no KUBECONFIG is set."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ


async def connect() -> ApiClient:
    """A client with the pod's own credentials, or with those of the kubeconfig. Close it after use."""
    # With trust_env aiohttp would look for a ~/.netrc before each request. A proxy in the kubeconfig is used anyway.
    configuration = Configuration(client_session_kwargs={"trust_env": False})
    if in_cluster():
        config.load_incluster_config(client_configuration=configuration)
    else:
        kubeconfig = os.environ.get("KUBECONFIG", str(Path.home() / ".kube" / "config"))
        await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    client = ApiClient(configuration)
    client.user_agent = AGENT
    return client


def _read_patience() -> float:
    return READ_SECONDS


class Api:
    """The API server by method and path. It knows no kinds and no rules of Sluice's."""

    def __init__(self, client: ApiClient, clock: Callable[[], float] = passing) -> None:
        """`clock` returns seconds and never jumps."""
        self._client = client
        self._clock = clock
        self._answered_at = clock()
        self._ahead = 0.0

    def time_of_day(self) -> float:
        """The API server's time by its last answer, in seconds since 1970; before the first, this process's own."""
        return time.time() - self._ahead

    def silence(self) -> float:
        """Seconds since a request last succeeded, or since the start. A refused request does not count as success."""
        return self._clock() - self._answered_at

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = JSON,
        patience: Patience = _read_patience,
        attempts: int = ATTEMPTS,
    ) -> Body:
        """Send a request. If its failure may pass (no answer, 429, most 5xx), try again after a growing, jittered
        pause.

        Args:
            patience: as `Patience`.
            attempts: how often it is sent at most.

        Raises:
            ApiError: the API server's refusal, or the last failure to reach it.
        """
        for attempt in range(1, attempts + 1):
            seconds = patience()
            try:
                return await self._once(method, path, query or {}, body, content_type, seconds)
            except _Refused as refused:
                if attempt == attempts or not refused.error.is_passing:
                    raise refused.error from None
                await asyncio.sleep(_pause(attempt, refused.retry_after))
        raise AssertionError("attempts must be at least 1")

    async def _once(
        self, method: str, path: str, query: Mapping[str, str], body: object, content_type: str, seconds: float
    ) -> Body:
        configuration = self._client.configuration
        headers = {"Accept": JSON, "Content-Type": content_type, "User-Agent": AGENT}
        headers |= {auth["key"]: auth["value"] for auth in (await configuration.auth_settings()).values()}
        url = f"{configuration.host}{path}?{urlencode(query)}" if query else f"{configuration.host}{path}"
        timeout = aiohttp.ClientTimeout(total=seconds)
        sent = time.time()
        try:
            # Not by the client's call_api, which copies each body part by part.
            response = await self._client.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=timeout
            )
            text = await response.read()
        except TimeoutError:
            raise _Refused(ApiError(0, "Timeout", f"no answer to {method} {path} within {seconds:.0f} s")) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Refused(ApiError(0, "Unreachable", f"{method} {path}: {type(error).__name__}: {error}")) from error
        self._ahead = ahead_of(response.headers.get("Date", ""), sent, time.time())
        if response.status >= 400:
            raise _Refused(_error(response.status, text), response.headers.get("Retry-After"))
        answer: Body = from_json(text)
        self._answered_at = self._clock()
        return answer


class _Refused(Exception):
    """A failed attempt, with the pause that the API server asks for."""

    def __init__(self, error: ApiError, retry_after: str | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after = float(retry_after) if retry_after and retry_after.isdecimal() else 0.0


def _error(status: int, text: bytes) -> ApiError:
    """The error in the answer's metav1.Status, or the answer's text if it has none."""
    try:
        body = json.loads(text)
        return ApiError(status, str(body["reason"]), str(body["message"]))
    except (ValueError, LookupError, TypeError):
        return ApiError(status, "Unknown", text[:500].decode(errors="replace"))


def _pause(attempt: int, retry_after: float) -> float:
    """Seconds until the next attempt: twice as long each time, jittered so that many clients do not return at once."""
    backoff = _FIRST_PAUSE * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5)
    return min(_LONGEST_PAUSE, max(backoff, retry_after))
