"""Names in bodies: the public one in requests becomes the version inside, and back in answers."""

import json
import re
from typing import Any

_SALT_PREFIX = "client:"
"""In front of a client's cache_salt, which could otherwise collide with an adapter's name (vllm#44701)."""


class NotJSON(ValueError):
    """A body that vLLM would refuse too."""


def parse(body: bytes) -> Any:
    """A request's JSON.

    Raises:
        NotJSON: it is none, or is nested too deeply.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NotJSON(str(error)) from error


def inward(request: Any, inner: str) -> Any:
    """The request as vLLM is to see it: the same object where it may stay as it is."""
    if not isinstance(request, dict):
        return request
    name, salt = request.get("model"), request.get("cache_salt")
    changed = {}
    if isinstance(name, str) and name not in ("", inner):
        changed["model"] = inner
    if isinstance(salt, str):
        changed["cache_salt"] = _SALT_PREFIX + salt
    return request | changed if changed else request


class Outward:
    """Puts the public name back into the answer to one request.

    Inside a JSON string a quote is escaped, so `"model":"<version>"` can only be a field and its value: what a
    model writes about itself stays as it wrote it.
    """

    def __init__(self, inner: str, public: str) -> None:
        self._inner, self._public = inner.encode(), public.encode()
        self._field = re.compile(rb'("model"\s*:\s*")' + re.escape(self._inner) + rb'(?=")')
        self._held = b""

    def answer(self, body: bytes) -> bytes:
        """A whole JSON body."""
        return self._field.sub(lambda match: match[1] + self._public, body)

    def error(self, body: bytes) -> bytes:
        """An error's body, which may name the version in its message; or a header's value."""
        return body.replace(self._inner, self._public)

    def lines(self, chunk: bytes, last: bool) -> bytes:
        """The next whole lines of an event stream, however it is cut into chunks."""
        text = self._held + chunk
        cut = len(text) if last else text.rfind(b"\n") + 1
        self._held = text[cut:]
        return self.answer(text[:cut])
