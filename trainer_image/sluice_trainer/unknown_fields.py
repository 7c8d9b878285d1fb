"""Names the right field for one that a FineTuneJob does not have, if another tool has it."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.foreign import LORA_CONFIG, SAGE, TRAINING_ARGUMENTS, Fate

_ALSO = {"lr": "learning_rate"}
"""What people write for short."""


def unknown_field(path: tuple[int | str, ...]) -> str:
    """Why a field is refused, and what to write instead.

    Args:
        path: where it is in the spec, such as ("training", "lr").
    """
    name = str(path[-1])
    theirs = _ALSO.get(name, name)
    tables = (LORA_CONFIG, TRAINING_ARGUMENTS, SAGE) if path[0] == "lora" else (TRAINING_ARGUMENTS, LORA_CONFIG, SAGE)
    known = next((table[theirs] for table in tables if theirs in table), None)
    if known is None:
        near = _nearest(".".join(map(str, path)))
        return f"not a field here{f'; did you mean {near}?' if near else ''}"
    match known.fate:
        case Fate.MAPPED:
            return f"not a field here; use {known.ours}"
        case Fate.REFUSED:
            return f"not a field here. {known.note}{f' The nearest is {known.ours}.' if known.ours else ''}"
        case Fate.IGNORED:
            return f"not a field here; leave it out. {known.note}"


def _nearest(path: str) -> str:
    """The field that is spelt most like it, at its place or at another."""
    ours = list(_fields(FineTuneJobSpec.model_json_schema(by_alias=True)))
    name = path.rpartition(".")[2].casefold()
    by_name = {field.rpartition(".")[2].casefold(): field for field in ours}
    found = get_close_matches(path, ours, n=1, cutoff=0.8)
    return found[0] if found else next((by_name[near] for near in get_close_matches(name, by_name, n=1)), "")


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    """Paths of all fields of a spec, one level deep: method, training.epochs."""
    for part, about in schema["properties"].items():
        yield part
        inner = schema["$defs"].get(about.get("$ref", "").rpartition("/")[2], {})
        yield from (f"{part}.{name}" for name in inner.get("properties", {}))
