"""Holds back the start of vLLM in a slot that can sleep, because a trainer may have the slot's GPUs.

A container that restarts knows nothing of a loan, and vLLM takes its memory while it starts, before it listens. So the
process that will become vLLM first serves this gate on vLLM's port, and becomes vLLM when the agent opens the gate. The
agent reads the engine's status and decides (agent/sleep.py). Standard library only, so that the gate is there before
vLLM is imported.
"""

import hmac
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sluice_server.control import DesiredState, ObservedState
from sluice_server.paths import SECRET_HEADER, START_PATH, STATE_PATH, TERMINATE_PATH, SlotPaths


class StartGate(ThreadingHTTPServer):
    """Answers on vLLM's port until the agent opens it. A thread for each connection: none can block the agent."""

    daemon_threads = True
    timeout = 0.2  # seconds that handle_request() waits for a connection

    def __init__(self, port: int, secret: str) -> None:
        self.secret = secret
        self.boot, self.since = uuid.uuid4().hex, time.monotonic()
        self.is_open = self.terminating = False
        super().__init__(("0.0.0.0", port), _Handler)

    def state(self) -> ObservedState:
        """What the agent and the preStop hook read in place of the middleware's state: nothing is in flight."""
        waited = time.monotonic() - self.since
        return ObservedState(
            boot=self.boot,
            desired=DesiredState(),
            terminating=self.terminating,
            in_flight=0,
            in_flight_by_version={},
            quiet_seconds=waited,
            draining_seconds=waited if self.terminating else 0.0,
            held=True,
        )


class _Handler(BaseHTTPRequestHandler):
    """One request to the gate."""

    server: StartGate
    timeout = 5

    def do_GET(self) -> None:
        """Answer the agent with the state, and everybody else with 503."""
        if self._is_agent() and self.path == STATE_PATH:
            return self._answer(200, self.server.state().to_json())
        return self._answer(503, '{"error":{"message":"This replica is not started.","code":503}}')

    def do_POST(self) -> None:
        """Open the gate for the agent, or note for the preStop hook that the pod is being deleted."""
        if self._is_agent() and self.path == START_PATH:
            self.server.is_open = True
        elif self._is_agent() and self.path == TERMINATE_PATH:
            self.server.terminating = True
        else:
            return self.do_GET()
        return self._answer(200, self.server.state().to_json())

    def _is_agent(self) -> bool:
        return hmac.compare_digest(self.headers.get(SECRET_HEADER, "").encode(), self.server.secret.encode())

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """No access log: the agent asks every second."""


def wait_at_start_gate(paths: SlotPaths) -> None:
    """Return when the agent has opened the gate."""
    with StartGate(paths.serve_port, paths.secret_file.read_text().strip()) as gate:
        while not gate.is_open:
            gate.handle_request()
