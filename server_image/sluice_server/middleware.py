"""The ASGI middleware in vLLM's own server (flag --middleware): what a request to an engine goes through.

Serving routes are open to everyone, with public names for adapters. Every other route needs the secret that only the
agent of this pod knows: a source address proves nothing under a mesh or a port-forward.
"""

import hmac
import json
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from pydantic import ValidationError

from sluice_api import pods
from sluice_api.slots import SlotSpec
from sluice_server.aliases import Aliases, ErrorResponse, Target
from sluice_server.asgi import (
    App,
    Disconnected,
    Receive,
    Scope,
    Send,
    TooLarge,
    header,
    read_body,
    refuse,
    replay,
    reply,
    with_length,
)
from sluice_server.control import AdapterLayers, DesiredState, DeviceMemory, ObservedState
from sluice_server.device_memory import device_memory
from sluice_server.fields import adapter_into_model, ignored_field, known_fields
from sluice_server.paths import END_PATH, LAYERS_PATH, SECRET_HEADER, STATE_PATH, TERMINATE_PATH, SlotPaths
from sluice_server.responses import Buffered, close_when_draining, json_change, rename_response
from sluice_server.rewrite import NotJSON, ResponseNames, parse, rename_request
from sluice_server.templates import AdapterTemplates, template_of_client, with_template
from sluice_server.traffic import Traffic

log = logging.getLogger("vllm.sluice")

PROBES = frozenset(("GET", path) for path in ("/health", "/metrics", "/metrics/", "/ping", "/version"))
"""Routes that are open to everyone, and neither counted nor changed."""

MODELS = ("GET", "/v1/models")

SERVING = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/score",
        "/v1/rerank",
        "/v2/embed",
        "/v2/rerank",
        "/classify",
        "/detokenize",
        "/pooling",
        "/rerank",
        "/score",
        "/tokenize",
    }
)
"""POST routes whose JSON body names the model."""

MAX_BODY_BYTES = 64 * 2**20


_EXIT_CODE = 70


def _end_process() -> None:
    """End vLLM's API server at once. Process 1 of the container ends with it, and so does every other process."""
    os._exit(_EXIT_CODE)


async def adapter_layers(app: Any, version: str) -> AdapterLayers:
    """Ask vLLM's workers which layers of a loaded adapter they use. A layer that no worker uses is passed over."""
    lora = app.state.openai_serving_models.lora_requests[version]
    per_worker = await app.state.engine_client.collective_rpc("sluice_adapter_layers", args=(lora.lora_int_id,))
    passed_over = set.intersection(*(set(names) for _, names in per_worker))
    return AdapterLayers(layers=max(count for count, _ in per_worker), passed_over=tuple(sorted(passed_over)))


class Middleware:
    """Resolves aliases, counts requests, drains, and denies all other routes. vLLM makes one instance per process."""

    def __init__(
        self,
        app: App,
        secret: str | None = None,
        base: str | None = None,
        *,
        served_names: Collection[str] = (),
        templates: AdapterTemplates | None = None,
        memory: Callable[[], tuple[DeviceMemory, ...] | None] = device_memory,
        end: Callable[[], None] = _end_process,
        layers: Callable[[Any, str], Awaitable[AdapterLayers]] = adapter_layers,
    ) -> None:
        self._app = app
        self._memory, self._end, self._layers = memory, end, layers
        self._secret = (secret or SlotPaths.here().secret_file.read_text()).strip().encode()
        if base is None:
            slot = SlotSpec.model_validate_json(pods.told(pods.SLOT_ENV))
            base, served_names = slot.engine, slot.spec.served_names
        self._aliases = Aliases(base, served_names)
        self._templates = templates or AdapterTemplates(SlotPaths.here().adapters)
        self._traffic = Traffic()
        self._desired = DesiredState()
        self._boot = uuid.uuid4().hex
        self._fields: dict[str, frozenset[str] | None] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or the application's lifespan."""
        match scope["type"]:
            case "lifespan":
                await self._app(scope, receive, send)
            case "http" if self._is_agent(scope):
                await self._agent(scope, receive, send)
            case "http":
                await self._client(scope, receive, close_when_draining(send, lambda: self._traffic.draining))
            case _:
                await send({"type": "websocket.close", "code": 1008})

    def _is_agent(self, scope: Scope) -> bool:
        return hmac.compare_digest(header(scope["headers"], SECRET_HEADER.encode()), self._secret)

    async def _client(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if (method, path) in PROBES:
            await self._app(scope, receive, send)
        elif (method, path) == MODELS:
            with self._traffic.request():
                await self._app(scope, receive, Buffered(send, json_change(self._aliases.public_models)))
        elif method == "POST" and path in SERVING and self._desired.asleep:
            # vLLM would keep the request until it wakes. The pod has left its endpoints: this is an old connection.
            await refuse(send, 503, "ServiceUnavailableError", "This replica sleeps: its GPUs are lent. Ask again.")
        elif method == "POST" and path in SERVING:
            with self._traffic.request():
                await self._serve(scope, receive, send)
        else:
            await refuse(send, 404, "NotFoundError", f"{method} {path} is not served by this engine.")

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(receive, MAX_BODY_BYTES)
            request = parse(body)
        except Disconnected:
            return
        except TooLarge:
            await refuse(send, 413, "BadRequestError", f"The request has more than {MAX_BODY_BYTES} bytes.")
            return
        except NotJSON as error:
            await refuse(send, 400, "BadRequestError", f"The request is not JSON: {error}")
            return
        asked = adapter_into_model(request, self._aliases) if isinstance(request, dict) else request
        if isinstance(asked, dict):
            asked = template_of_client(asked) or ignored_field(asked, self._known_fields(scope)) or asked
        if isinstance(asked, ErrorResponse):
            await refuse(send, asked.status, asked.type, asked.message, asked.param)
            return
        # No await from here until the request is counted: the agent unloads a version as soon as no alias leads to it
        # and its count is zero.
        target = self._target(asked)
        if isinstance(target, ErrorResponse):
            await refuse(send, target.status, target.type, target.message, target.param)
            return
        with self._traffic.on(target.inner):
            asked = with_template(asked, scope["path"], target, self._template(target))
            if isinstance(asked, ErrorResponse):
                await refuse(send, asked.status, asked.type, asked.message, asked.param)
                return
            if target.inner != target.public:
                is_version = target.inner != self._aliases.base.inner  # The engine's name may be any word.
                send = rename_response(send, ResponseNames(target.inner, target.public, in_text=is_version))
            if (changed := rename_request(asked, target.inner)) is not request:
                body = json.dumps(changed).encode()
                scope = {**scope, "headers": with_length(scope["headers"], len(body))}
            await self._app(scope, replay(body, receive), send)

    def _known_fields(self, scope: Scope) -> frozenset[str] | None:
        path = scope["path"]
        if path not in self._fields:
            self._fields[path] = known_fields(scope.get("app"), path)
        return self._fields[path]

    def _target(self, request: Any) -> Target | ErrorResponse:
        name = request.get("model") if isinstance(request, dict) else None
        # Without a model vLLM takes the base model. A model that is no string gets vLLM's own error.
        return self._aliases.resolve(name) if name and isinstance(name, str) else self._aliases.base

    def _template(self, target: Target) -> str | None:
        """The adapter's own chat template; None for the base model, and for an adapter that uses the engine's."""
        return None if target.inner == self._aliases.base.inner else self._templates.of(target.inner)

    async def _agent(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["method"], scope["path"]:
            case ("GET", path) if path == STATE_PATH:
                await reply(send, 200, self._observed().model_dump(mode="json", by_alias=True))
            case ("PUT", path) if path == STATE_PATH:
                await self._put_state(receive, send)
            case ("POST", path) if path == TERMINATE_PATH:
                self._traffic.terminate()
                await reply(send, 200, self._observed().model_dump(mode="json", by_alias=True))
            case ("POST", path) if path == LAYERS_PATH:
                version = json.loads(await read_body(receive, MAX_BODY_BYTES))["version"]
                await reply(send, 200, (await self._layers(scope.get("app"), version)).model_dump(by_alias=True))
            case ("POST", path) if path == END_PATH:
                log.error("the agent ends this vLLM")
                await reply(send, 200, {})
                self._end()
            case _:
                await self._app(scope, receive, send)

    async def _put_state(self, receive: Receive, send: Send) -> None:
        try:
            desired = DesiredState.model_validate_json(await read_body(receive, MAX_BODY_BYTES))
        except (ValidationError, TooLarge) as error:
            await refuse(send, 400, "BadRequestError", str(error))
            return
        except Disconnected:
            return
        if desired != self._desired:
            log.info("new state %s", desired.to_json())
        self._desired = desired
        self._aliases.replace(desired.aliases, desired.unavailable)
        self._templates.keep(desired.aliases.values())
        self._traffic.drain(desired.draining)
        await reply(send, 200, self._observed().model_dump(mode="json", by_alias=True))

    def _observed(self) -> ObservedState:
        traffic = self._traffic
        return ObservedState(
            boot=self._boot,
            desired=self._desired,
            terminating=traffic.terminating,
            in_flight=traffic.in_flight,
            in_flight_by_version=dict(traffic.by_version),
            quiet_seconds=traffic.quiet_seconds,
            draining_seconds=traffic.draining_seconds,
            memory=self._memory() if self._desired.asleep else None,
        )
