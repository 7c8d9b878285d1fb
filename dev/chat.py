"""Chat requests to an engine from outside the cluster, on any provider: through the API server's own proxy.

Unlike a port-forward, which stays with one pod, every request goes to a replica that is ready at that moment.
"""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dev.cluster import provider, tools
from dev.commands import printing
from dev.errors import DevError

LONGEST_ANSWER = 48
PAUSE_SECONDS = 2.0
PATIENCE_SECONDS = 120


@dataclass
class Answers:
    """What came of asking again and again."""

    given: int = 0
    failed: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """For a person."""
        return f"{self.given} answers so far, {len(self.failed)} failed"


class Chat:
    """An engine of one namespace."""

    def __init__(self, proxy: str, namespace: str, engine: str) -> None:
        """`proxy` is the address of `kubectl proxy`."""
        self._namespaced = f"{proxy}/api/v1/namespaces/{namespace}"
        self._engine = engine

    def ask(self, model: str, question: str, *, pod: str = "", longest: int = LONGEST_ANSWER) -> str:
        """The answer of a model, by whichever replica is ready, or by one pod.

        Raises:
            DevError: no answer, or one with an error.
        """
        target = f"pods/{pod}:8000" if pod else f"services/{self._engine}:http"
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": longest,
            "temperature": 0,
        }
        request = urllib.request.Request(
            f"{self._namespaced}/{target}/proxy/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return str(json.load(answer)["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as refused:
            said = refused.read().decode(errors="replace")[:500]
            raise DevError(f"{model}: HTTP {refused.code}: {said}") from refused
        except OSError as failed:
            raise DevError(f"{model}: {failed}") from failed

    @contextmanager
    def asked_again_and_again(self, model: str, question: str) -> Iterator[Answers]:
        """Ask in the background, for a short answer each time, until the block ends."""
        answers = Answers()
        stop = threading.Event()

        def ask() -> None:
            while not stop.wait(PAUSE_SECONDS):
                try:
                    self.ask(model, question, longest=4)
                    answers.given += 1
                except DevError as failed:
                    answers.failed.append(str(failed))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            yield answers
        finally:
            stop.set()
            asking.join()


@contextmanager
def open_chat(namespace: str, engine: str) -> Iterator[Chat]:
    """A way to the engine for as long as the block lasts."""
    config = f"--kubeconfig={provider.kubeconfig()}"
    with printing([tools.stable_path("kubectl"), config, "proxy", "--port=0"]) as lines:
        said = next(lines, "")  # Starting to serve on 127.0.0.1:43651
        if not said:
            raise DevError("`kubectl proxy` ended at once")
        yield Chat(f"http://{said.split()[-1]}", namespace, engine)
