"""What a client asks of the API server, in the words in which people speak of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

_VERBS = {"POST": "create", "PUT": "update", "DELETE": "delete"}


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    query: Mapping[str, str]
    plural: str = ""
    """Empty when it is about no objects: discovery, say."""
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @classmethod
    def of(cls, method: str, path: str, query: Mapping[str, str]) -> "Asked":
        """Read a path: /api/v1/... or /apis/GROUP/VERSION/..., then [namespaces/N/]PLURAL[/NAME[/SUBRESOURCE]]."""
        parts = path.strip("/").split("/")
        rest = parts[2:] if parts[0] == "api" else parts[3:] if parts[0] == "apis" else []
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        plural, name, subresource = (*rest, "", "", "")[:3]
        return cls(method, path, query, plural, namespace, name, subresource)

    @property
    def verb(self) -> str:
        """Create, apply, patch, update, delete; list, watch or get."""
        if self.method == "GET":
            watches = self.query.get("watch") in ("true", "1")
            return "watch" if watches else "get" if self.name or not self.plural else "list"
        if self.method == "PATCH":
            return "apply" if "force" in self.query else "patch"
        return _VERBS.get(self.method, self.method.lower())

    @property
    def writes(self) -> bool:
        """Whether it changes something."""
        return self.method != "GET"

    @property
    def line(self) -> str:
        """Method, path and query, for a pattern to be searched in."""
        query = "&".join(f"{name}={value}" for name, value in self.query.items())
        return f"{self.method} {self.path}{f'?{query}' if query else ''}"

    def with_query(self, **changes: str) -> "Asked":
        """The same with other parameters."""
        return replace(self, query={**self.query, **changes})
