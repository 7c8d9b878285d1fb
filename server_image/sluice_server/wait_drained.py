"""The preStop hook of the container `vllm`: the pod is being deleted, so requests in flight end first.

Standard library only, so that the hook starts in a moment beside a busy vLLM.
"""

import http.client
import json
import sys
import time
from typing import Any

from sluice_api import pods
from sluice_server.paths import QUIET_SECONDS, SECRET_HEADER, TERMINATE_PATH, SlotPaths

_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 5.0


def wait_drained() -> None:
    """Return when no request is in flight and none has begun for a moment, or when the drain timeout is over.

    After a drain that the operator began, it returns at once, and also when nothing listens on vLLM's port. A vLLM that
    is too busy to answer is asked again.
    """
    paths = SlotPaths.here()
    limit = float(json.loads(pods.told(pods.SLOT_ENV))["spec"]["preemption"]["drainTimeoutSeconds"])
    started = time.monotonic()
    outcome = "vLLM has not answered"
    while (waited := time.monotonic() - started) < limit + QUIET_SECONDS:
        try:
            state = _terminate(paths)
        except ConnectionRefusedError:
            outcome = "nobody listens"
            break
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome = repr(error)
        else:
            outcome = f"{state['inFlight']} in flight"
            if _drained(state):
                break
        time.sleep(_POLL_SECONDS)
    sys.stdout.write(f"waited {waited:.1f} s: {outcome}\n")


def _drained(state: dict[str, Any]) -> bool:
    quiet = min(state["quietSeconds"], state["drainingSeconds"])
    return bool(state["inFlight"] == 0 and quiet >= QUIET_SECONDS)


def _terminate(paths: SlotPaths) -> dict[str, Any]:
    """Tell the middleware that the pod is being deleted, and return its state. To do so twice does no harm."""
    connection = http.client.HTTPConnection("127.0.0.1", paths.serve_port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("POST", TERMINATE_PATH, headers={SECRET_HEADER: paths.secret_file.read_text().strip()})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise ValueError(f"{TERMINATE_PATH} was answered with {answer.status}")
        found: dict[str, Any] = json.loads(body)
        return found
    finally:
        connection.close()
