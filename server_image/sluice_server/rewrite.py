"""The model's name in bodies: a request's public name becomes the version inside vLLM, and a response's the reverse."""

import json
import re
from typing import Any

_SALT_PREFIX = "client:"
"""In front of a client's cache_salt, which could otherwise collide with an adapter's name (vllm#44701)."""


class NotJSON(ValueError):
    """A body that is no JSON; vLLM would refuse it too."""


def parse(body: bytes) -> Any:
    """The value of a request's JSON body.

    Raises:
        NotJSON: the body is no JSON, or is nested too deeply.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NotJSON(str(error)) from error


def rename_request(request: Any, inner: str) -> Any:
    """The request with the name inside vLLM and a safe cache_salt; the same object if nothing has to change."""
    if not isinstance(request, dict):
        return request
    name, salt = request.get("model"), request.get("cache_salt")
    changed = {}
    if isinstance(name, str) and name not in ("", inner):
        changed["model"] = inner
    if isinstance(salt, str):
        changed["cache_salt"] = _SALT_PREFIX + salt
    return request | changed if changed else request


class ResponseNames:
    """Puts the public name back into the response to one request.

    A quote inside a JSON string is escaped, so `"model":"<version>"` can only be a field and its value: text that the
    model generates is never changed.
    """

    def __init__(self, inner: str, public: str, *, in_text: bool = True) -> None:
        """Take both names. `in_text`: the inner one is nothing but a name, and errors may have it in their words."""
        self._inner, self._public, self._in_text = inner.encode(), public.encode(), in_text
        self._field = re.compile(rb'("model"\s*:\s*")' + re.escape(self._inner) + rb'(?=")')
        self._rest = b""

    def json(self, body: bytes) -> bytes:
        """Rename in a whole JSON body."""
        return self._field.sub(lambda match: match[1] + self._public, body)

    def error(self, body: bytes) -> bytes:
        """Rename everywhere in an error's body, whose message may name the version, or in a header's value."""
        return body.replace(self._inner, self._public) if self._in_text else body

    def stream(self, chunk: bytes, last: bool) -> bytes:
        """Rename in the lines of an event stream that this chunk completes; keep the rest for the next call."""
        text = self._rest + chunk
        cut = len(text) if last else text.rfind(b"\n") + 1
        self._rest = text[cut:]
        return self.json(text[:cut])
