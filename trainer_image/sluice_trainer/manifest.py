"""A file of Kubernetes objects, read as kubectl reads it: YAML 1.1 as Go has it, in which 2e-4 is a number."""

import re
from pathlib import Path
from typing import Any

import yaml

_MAX_DEPTH = 100
_OTHERS_IN_GO = ("timestamp", "float", "int")


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with the scalars of Go's (sigs.k8s.io/yaml)."""

    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _OTHERS_IN_GO]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Make a number: kubectl writes 2.0 as 2 when it makes JSON of it."""
        value = super().construct_yaml_float(node)
        return int(value) if value.is_integer() else value


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^[yYnN]$"), list("yYnN"))
_Loader.bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
# The resolver that is added last is asked last, so that a whole number, which both take, has to come before.
for _letter in "-+0123456789":
    _Loader.yaml_implicit_resolvers.setdefault(_letter, []).insert(
        0, ("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"))
    )


def read_documents(file: Path) -> list[Any]:
    """All documents of a file.

    Raises:
        OSError: it can't be read.
        ValueError: it is no text, or a value of it can't be JSON.
        RecursionError: it is nested too deeply.
        yaml.YAMLError: it is not YAML.
    """
    documents = list(yaml.load_all(file.read_text(encoding="utf-8"), Loader=_Loader))
    for document in documents:
        _check(document, 0)
    return documents


def _check(value: Any, depth: int) -> None:
    """Refuse what no JSON has: a value inside of itself, a key that is no text, half of a surrogate pair."""
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply, or a value is inside of itself")
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is no text")  # noqa: TRY004 - of the file, not of this program
            _check(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            _check(each, depth + 1)
    elif isinstance(value, str):
        value.encode()
