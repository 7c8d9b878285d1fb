"""Where the vLLM of a slot that sleeps waits before it starts: a trainer may have its GPUs.

A container that restarts knows nothing of a loan, and vLLM takes its memory while it starts, before it listens. So the
process that would be vLLM first answers on vLLM's port, and starts when the agent says so, which reads the engine's
status. Standard library only: here nobody waits for vLLM's imports.
"""

import hmac
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sluice_server.control import DesiredState, ObservedState
from sluice_server.paths import SECRET_HEADER, START_PATH, STATE_PATH, TERMINATE_PATH, SlotPaths


class _Room(ThreadingHTTPServer):
    """What is known while vLLM waits. A thread for each visitor: nobody can keep the agent out."""

    daemon_threads = True
    timeout = 0.2  # seconds after which it is looked whether vLLM may start

    def __init__(self, port: int, secret: str) -> None:
        self.secret = secret
        self.boot, self.since = uuid.uuid4().hex, time.monotonic()
        self.may_start = self.terminating = False
        super().__init__(("0.0.0.0", port), _Visit)

    def state(self) -> ObservedState:
        """For the agent and for preStop: nothing is in flight, and nothing ever was."""
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


class _Visit(BaseHTTPRequestHandler):
    """One request."""

    server: _Room
    timeout = 5

    def do_GET(self) -> None:
        """Answer the agent; everybody else comes too early."""
        if self._is_agent() and self.path == STATE_PATH:
            return self._answer(200, self.server.state().to_json())
        return self._answer(503, '{"error":{"message":"This replica is not started.","code":503}}')

    def do_POST(self) -> None:
        """The agent's word, or preStop's."""
        if self._is_agent() and self.path == START_PATH:
            self.server.may_start = True
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
        """The agent comes every second: not worth a line."""


def wait_for_the_agent(paths: SlotPaths) -> None:
    """Return when the agent lets vLLM start."""
    with _Room(paths.serve_port, paths.secret_file.read_text().strip()) as room:
        while not room.may_start:
            room.handle_request()
