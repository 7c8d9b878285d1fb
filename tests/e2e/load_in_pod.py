"""Runs in a pod of the cluster: asks an engine's Service again and again, as applications do. Prints a line per answer.

python3 load_in_pod.py http://chat/v1 chat
"""

import json
import socket
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import openai

STOP = Path("/scratch/stop")
PAUSE_SECONDS = 1.0
_printing = threading.Lock()


def ask_again_and_again(url: str, model: str, stream: bool) -> None:
    """One application: one pool of kept-alive connections, no retries."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    number = 0
    while not STOP.exists():
        number += 1
        line: dict[str, object] = {"stream": stream, "number": number}
        try:
            line["finish"] = _streamed(client, model) if stream else _whole(client, model)
        except openai.OpenAIError as error:
            line["error"] = f"{type(error).__name__}: {error} {error.__cause__!r}"
        with _printing:
            sys.stdout.write(f"{json.dumps(line)}\n")
            sys.stdout.flush()
        time.sleep(PAUSE_SECONDS)  # the pace of an application, so that the engine is not all that runs here


def _whole(client: openai.OpenAI, model: str) -> str | None:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Where is my parcel?"}], max_tokens=16, temperature=0
    )
    return answer.choices[0].finish_reason


def _streamed(client: openai.OpenAI, model: str) -> str | None:
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Tell me about the sea."}],
        max_tokens=48,
        temperature=0,
        stream=True,
    )
    finish: str | None = None
    for chunk in chunks:
        finish = chunk.choices[0].finish_reason or finish
    return finish


def by_address(url: str) -> str:
    """The URL with its host's address. It is looked up once: whether a busy cluster's DNS answers is not asked here."""
    host = urlsplit(url).hostname or ""
    deadline = time.monotonic() + 60
    while True:
        try:
            return url.replace(host, socket.gethostbyname(host), 1)
        except socket.gaierror:
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    where = by_address(sys.argv[1])
    kinds = (True, False)
    asking = [threading.Thread(target=ask_again_and_again, args=(where, sys.argv[2], stream)) for stream in kinds]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
