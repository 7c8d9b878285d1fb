"""preStop of the container `vllm`: the pod is going, so let what is in flight end first.

Standard library only, so that it starts in a moment beside a busy vLLM.
"""

import http.client
import json
import os
import sys
import time
from typing import Any

from sluice_api import pods
from sluice_server.paths import QUIET_SECONDS, SECRET_HEADER, TERMINATE_PATH, SlotPaths

_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 5.0


def wait_drained() -> None:
    """Return when no request is in flight and none comes any more, or when the drain timeout is over.

    Right after a drain that the operator began, that is at once. Where nobody listens there is nothing to wait
    for; a vLLM that is too busy to answer is asked again.
    """
    paths = SlotPaths.here()
    limit = float(json.loads(os.environ[pods.SLOT_ENV])["spec"]["preemption"]["drainTimeoutSeconds"])
    started = time.monotonic()
    said = "vLLM has not answered"
    while (waited := time.monotonic() - started) < limit + QUIET_SECONDS:
        try:
            state = _terminate(paths)
        except ConnectionRefusedError:
            said = "nobody listens"
            break
        except (OSError, http.client.HTTPException, ValueError) as error:
            said = repr(error)
        else:
            said = f"{state['inFlight']} in flight"
            if _drained(state):
                break
        time.sleep(_POLL_SECONDS)
    sys.stdout.write(f"waited {waited:.1f} s: {said}\n")


def _drained(state: dict[str, Any]) -> bool:
    quiet = min(state["quietSeconds"], state["drainingSeconds"])
    return bool(state["inFlight"] == 0 and quiet >= QUIET_SECONDS)


def _terminate(paths: SlotPaths) -> dict[str, Any]:
    """Say that the pod is going, again if need be; returns the middleware's state."""
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
