"""A row that fits no format: what it seems to be, and what the job says for it."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from sluice_trainer.data.row import BadRowError, Fields

_ASKED = ("question", "query", "instruction", "input", "problem", "source", "user", "human", "q", "prompt")
_ANSWERED = ("answer", "response", "output", "solution", "target", "assistant", "gpt", "a", "reply", "completion")
"""Names that questions and answers have in public datasets."""
_LONGEST_NAME = 64
"""Characters of a field's name. What is longer, or says nothing, is a cell of a table without a header."""
_ALL_FORMATS = (
    'Write rows with "messages", "conversations", "instruction" and "output", "prompt" and "completion", "chosen" and '
    '"rejected", or "text"'
)


def fits_none(fields: Fields) -> BadRowError:
    """Why a row can't be read in any format, and what makes it one."""
    has = ", ".join(f'"{name}"' for name in list(fields)[:6]) or "no field"
    if any(len(name) > _LONGEST_NAME or not name.strip() for name in fields):
        return _unfit(has, "The file seems to have no header: give it one, such as instruction,output")
    if "chosen" in fields or "rejected" in fields:
        return lacks(fields, ("chosen", "rejected"))
    for name, value in fields.items():
        if not (isinstance(value, list) and value and all(isinstance(each, dict) for each in value[:2])):
            continue
        if {"role", "content"} <= value[0].keys():
            return _unfit(has, f"Set dataset.fields: {{messages: {name}}}")
        if {"from", "value"} <= value[0].keys():
            return _unfit(has, f"Set dataset.fields: {{conversations: {name}}}")
        if len(value) > 1:
            return BadRowError(
                f'the row has "{name}", an array of {len(value)} objects, which seem to be the rows',
                f"Take them out: jq -c '.{name}[]' file.json > rows.jsonl",
            )
    return _unfit(has, _of_texts([name for name, value in fields.items() if isinstance(value, str)]))


def _unfit(has: str, remedy: str) -> BadRowError:
    return BadRowError(f"the row has {has}, and no format has such fields", remedy)


def _of_texts(names: list[str]) -> str:
    """What to write for a row with texts of these names."""
    if not names:
        return _ALL_FORMATS
    if len(names) == 1:
        return f"Set dataset.fields: {{text: {names[0]}}}, if all of it is to be learnt. {_ALL_FORMATS} otherwise"
    by_name = {name.lower(): name for name in names}
    asked = next((by_name[name] for name in _ASKED if name in by_name), None)
    answered = next((by_name[name] for name in _ANSWERED if name in by_name), None)
    if asked and answered:
        return f"Set dataset.fields: {{prompt: {asked}, completion: {answered}}}"
    return (
        f"Say which of its fields is what, such as dataset.fields: {{prompt: {names[0]}, completion: {names[1]}}}, or "
        f"{{text: {names[0]}}}"
    )


def lacks(fields: Fields, wanted: Iterable[str]) -> BadRowError:
    """Why a row has not the format that it should have."""
    has = ", ".join(f'"{name}"' for name in list(fields)[:6]) or "no field"
    names = quoted(wanted)
    return BadRowError(
        f"the row has {has}, not {names}", f"Give the row {names}, or name its own fields in dataset.fields"
    )


def not_there(missing: Sequence[str], has: Sequence[str]) -> BadRowError:
    """Why a row lacks what dataset.fields names, and what may be meant."""
    names = quoted(missing)
    found = ", ".join(f'"{name}"' for name in has[:6]) or "no field"
    return BadRowError(f"the row has {found}, not {names}, which dataset.fields names", meant(missing, has))


def meant(missing: Sequence[str], has: Sequence[str]) -> str:
    """What to do about names in dataset.fields that are not among the fields of a row, or of all."""
    near = {name: found[0] for name in missing if (found := get_close_matches(name, has, 1))}
    if near:
        return "Write " + " and ".join(f'"{found}" for "{name}"' for name, found in near.items()) + " there"
    return f"Name fields there that the rows have, or give them {quoted(missing)}"


def quoted(names: Iterable[str]) -> str:
    """Names as messages show them."""
    return " and ".join(f'"{name}"' for name in names)


def in_their_words(error: BadRowError, names: Mapping[str, str]) -> BadRowError:
    """An error that names fields as the row does.

    Args:
        error: As a format says it.
        names: dataset.fields: the name that a format knows, and the row's own name of it.
    """
    if not names:
        return error

    def told(text: str) -> str:
        parts = text.split('"')
        for index in range(1, len(parts), 2):  # what stands in quotes
            name, mark, rest = parts[index].partition("[")
            parts[index] = f"{names.get(name, name)}{mark}{rest}"
        return '"'.join(parts)

    return BadRowError(told(error.problem), told(error.remedy))
