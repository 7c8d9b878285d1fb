"""The formats of rows: by which fields each is known, and how it is read."""

from array import array
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sluice_api.dataset import DatasetFormat
from sluice_api.reasons import Reason
from sluice_trainer.data.near_misses import fits_none, lacks, not_there
from sluice_trainer.data.row import (
    NOT_LEARNT,
    AnyRow,
    BadRowError,
    Conversation,
    Fields,
    Pair,
    Passage,
    Row,
    Tokens,
    Turn,
    optional_text_of,
    text_of,
)
from sluice_trainer.data.turns import require_answer, tools_of, turns_of
from sluice_trainer.errors import StageError

FIELDS: dict[DatasetFormat, tuple[tuple[str, ...], ...]] = {
    DatasetFormat.MESSAGES: (("messages",),),
    DatasetFormat.SHARE_GPT: (("conversations",),),
    DatasetFormat.ALPACA: (("instruction", "output"), ("instruction", "response")),
    DatasetFormat.PROMPT_COMPLETION: (
        ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("question", "response"),
        ("query", "response"),
    ),
    DatasetFormat.PREFERENCE: (("chosen", "rejected"), ("input", "preferred_output", "non_preferred_output")),
    DatasetFormat.TEXT: (("text",),),
    DatasetFormat.TOKENS: (("input_ids", "labels"),),
}  # fmt: skip
"""The fields of a row of each format, or of its spellings."""
OPTIONAL: dict[DatasetFormat, tuple[str, ...]] = {
    DatasetFormat.MESSAGES: ("system", "tools"),
    DatasetFormat.SHARE_GPT: ("system", "tools"),
    DatasetFormat.ALPACA: ("input", "context", "system", "system_prompt", "history"),
    DatasetFormat.PROMPT_COMPLETION: ("system", "system_prompt", "tools"),
    DatasetFormat.PREFERENCE: ("prompt", "question", "query", "system", "system_prompt", "tools"),
    DatasetFormat.TOKENS: ("attention_mask",),
}
"""What a row of each format may have besides. Nothing reads any other field."""


def renamed(fields: Fields, names: Mapping[str, str]) -> Fields:
    """The row with the field names that formats know.

    Args:
        fields: The row.
        names: dataset.fields: the name that a format knows, and the row's own name of it.
    """
    if not names:
        return fields
    others = {name: value for name, value in fields.items() if name not in names and name not in names.values()}
    return {**others, **{ours: fields[theirs] for ours, theirs in names.items() if theirs in fields}}


def unread(fields: Fields, form: DatasetFormat) -> frozenset[str]:
    """Fields of a row that its format does not read."""
    known = {name for names in FIELDS.get(form, ()) for name in names}
    return frozenset(fields) - known - {*OPTIONAL.get(form, ())}


def has_format(fields: Fields, form: DatasetFormat) -> bool:
    """Whether a row has the fields of a format."""
    return any(all(fields.get(name) is not None for name in names) for names in FIELDS.get(form, ()))


def format_of(
    fields: Fields, expected: DatasetFormat, place: str, names: Mapping[str, str] | None = None
) -> DatasetFormat:
    """The format of a row.

    Args:
        fields: The row, renamed.
        expected: What the job says, or Auto.
        place: The row, for a message.
        names: dataset.fields, for a message.

    Raises:
        BadRowError: it has no format's fields.
        StageError: it has those of several, and the job does not say which is meant.
    """
    if has_format(fields, expected):
        return expected
    found = [form for form in FIELDS if has_format(fields, form)]
    if not found:
        missing = [theirs for ours, theirs in (names or {}).items() if fields.get(ours) is None]
        if missing:
            has = [names[ours] if names and ours in names else ours for ours in fields if fields[ours] is not None]
            raise not_there(missing, has)
        raise lacks(fields, FIELDS[expected][0]) if expected in FIELDS else fits_none(fields)
    if len(found) > 1 and expected is DatasetFormat.AUTO:
        raise StageError(
            Reason.DATASET_INVALID,
            f"{place}: the row can be read as {' or as '.join(found)}. Set dataset.format to the one that is meant.",
        )
    return found[0]


_ANSWERS = (
    DatasetFormat.MESSAGES, DatasetFormat.SHARE_GPT, DatasetFormat.ALPACA, DatasetFormat.PROMPT_COMPLETION,
)  # fmt: skip
_RATINGS = ("label", "kto_tag")
"""Where TRL and LLaMA-Factory expect whether an answer is good."""


def _is_rating(value: object) -> bool:
    """Whether a value is a boolean, or the text of one: a CSV file has no others."""
    return isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false"))


def parse(fields: Fields, form: DatasetFormat, place: str) -> AnyRow:
    """Read a row of a format.

    Raises:
        BadRowError: it can't be trained on.
        StageError: no row of such a dataset can.
    """
    if form in _ANSWERS and (rated := next((name for name in _RATINGS if _is_rating(fields.get(name))), None)):
        raise StageError(
            Reason.DATASET_INVALID,
            f'{place}: "{rated}" says whether an answer is good (KTO), and what it calls bad would be learnt too. Keep '
            f'the good rows without "{rated}", or write good and bad answers to one prompt as "chosen" and "rejected".',
        )
    return _PARSERS[form](fields)


def _messages(fields: Fields) -> Row:
    return _conversation(fields, "messages")


def _share_gpt(fields: Fields) -> Row:
    return _conversation(fields, "conversations")


def _conversation(fields: Fields, name: str) -> Conversation:
    turns = turns_of(fields, name)
    if turns and turns[0].role != "system":
        turns = (*_system(fields), *turns)  # as LLaMA-Factory has it beside a conversation
    require_answer(name, turns)
    return Conversation(turns, tools_of(fields))


def _first(fields: Fields, *names: str) -> str:
    """The first of these fields that the row has; the first name where it has none."""
    return next((name for name in names if fields.get(name) is not None), names[0])


def _system(fields: Fields) -> tuple[Turn, ...]:
    name = _first(fields, "system", "system_prompt")
    text = optional_text_of(fields, name)
    return (Turn("system", text, name),) if text.strip() else ()


def _alpaca(fields: Fields) -> Row:
    question = text_of(fields, "instruction")
    if (more := optional_text_of(fields, _first(fields, "input", "context"))).strip():
        question = f"{question}\n\n{more}" if question.strip() else more
    answer = _first(fields, "output", "response")
    asked, answered = Turn("user", question, "instruction"), Turn("assistant", text_of(fields, answer), answer)
    return Conversation((*_system(fields), *_alpaca_history(fields), asked, answered))


def _alpaca_history(fields: Fields) -> tuple[Turn, ...]:
    """The turns before, as pairs of a question and an answer, which is learnt too."""
    history = fields.get("history") or []
    pairs = history if isinstance(history, list) else [history]
    turns: list[Turn] = []
    for index, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise BadRowError(f'"history[{index}]" is no question with its answer', 'Write ["question", "answer"]')
        at = f"history[{index}]"
        turns += [Turn("user", pair[0], f"{at}[0]"), Turn("assistant", pair[1], f"{at}[1]")]
    return tuple(turns)


_PROMPTS = ("prompt", "question", "query")


def _prompt_completion(fields: Fields) -> Row:
    prompt, completion = (
        _first(fields, *_PROMPTS),
        _first(fields, "completion", "response", "answer"),
    )
    asked = _asked(fields, prompt)
    if asked[0].role != "system":
        asked = (*_system(fields), *asked)
    if isinstance(fields[completion], list):
        answer = turns_of(fields, completion)
        require_answer(completion, (*asked, *answer))
    else:
        answer = (Turn("assistant", text_of(fields, completion), completion),)
    return Conversation((*asked, *answer), tools_of(fields), _is_plain(fields, prompt, completion))


def _is_plain(fields: Fields, *names: str) -> bool:
    """Whether a row is plain texts of these names and nothing else, which can follow each other without a template."""
    return all(isinstance(fields.get(name), str) for name in names) and not (_system(fields) or tools_of(fields))


def _asked(fields: Fields, name: str) -> tuple[Turn, ...]:
    """What comes before an answer: a text, or turns that end with what is asked. None of it is learnt."""
    if not isinstance(fields[name], list):
        return (Turn("user", text_of(fields, name), name),)
    turns = turns_of(fields, name, learnt=False)
    if not turns or turns[-1].role not in ("user", "tool"):
        raise BadRowError(
            f'"{name}" ends with the {turns[-1].role if turns else "system"}', "End it with what the user says"
        )
    return turns


def _preference(fields: Fields) -> Row:
    """A prompt with two answers: each a text, or turns, which may have the prompt in them."""
    if fields.get("chosen") is None or fields.get("rejected") is None:  # as OpenAI spells it
        outer = fields["input"] if isinstance(fields["input"], dict) else {}
        asked = turns_of({"input.messages": outer.get("messages")}, "input.messages", learnt=False)
        names, tools = ("preferred_output", "non_preferred_output"), tools_of(outer)
    else:
        prompt = _first(fields, *_PROMPTS)
        asked = _asked(fields, prompt) if fields.get(prompt) is not None else ()
        names, tools = ("chosen", "rejected"), tools_of(fields)
    answers = [_answer(fields, name) for name in names]
    common = next((i for i, (a, b) in enumerate(zip(*answers, strict=False)) if _said(a) != _said(b)), None)
    if common is None:
        raise BadRowError(f'"{names[0]}" and "{names[1]}" are the same', "Leave the row out: nothing can be preferred")
    before, sides = answers[0][:common], [answer[common:] for answer in answers]
    if before and [*map(_said, asked)] == [*map(_said, before)][-len(asked) :]:
        asked = ()  # it is in the answers too
    turns = tuple(Turn(turn.role, turn.content, turn.at, False, turn.more) for turn in (*asked, *before))
    if turns and turns[0].role != "system":
        turns = (*_system(fields), *turns)
    if not turns or turns[-1].role not in ("user", "tool"):
        if turns:
            raise BadRowError(f'"prompt" ends with the {turns[-1].role}', "End it with what the user says")
        raise BadRowError(
            "there is no prompt before the two answers",
            'Give the row "prompt", or name its own field of it: dataset.fields: {prompt: ...}',
        )
    for name, side in zip(names, sides, strict=True):
        if [turn.role for turn in side] != ["assistant"]:
            raise BadRowError(
                f'"{name}" is not one turn of the assistant', 'Write the answer alone; what is before is "prompt"'
            )
    is_plain = _is_plain(fields, _first(fields, *_PROMPTS), *names)
    return Pair(*(Conversation((*turns, *side), tools, is_plain) for side in sides))


def _answer(fields: Fields, name: str) -> tuple[Turn, ...]:
    if isinstance(fields[name], list):
        return turns_of(fields, name)
    return (Turn("assistant", text_of(fields, name), name),)


def _said(turn: Turn) -> tuple[str, str, Mapping[str, Any]]:
    return turn.role, turn.content, turn.more


def _passage(fields: Fields) -> Row:
    return Passage(text_of(fields, "text"))


def _tokens(fields: Fields) -> Tokens:
    ids, labels = (_whole_numbers(fields[name], name) for name in ("input_ids", "labels"))
    if len(ids) != len(labels):
        raise BadRowError(
            f'"input_ids" has {len(ids)} tokens, "labels" {len(labels)}', "Write one label for each token"
        )
    wrong = np.flatnonzero((labels != ids) & (labels != NOT_LEARNT))
    if len(wrong):
        at = wrong[0]
        raise BadRowError(
            f'"labels[{at}]" is {labels[at]}, and "input_ids[{at}]" is {ids[at]}',
            f"Write the same id, or {NOT_LEARNT} for a token that is not learnt; labels are not shifted",
        )
    return Tokens(ids, labels)


def _whole_numbers(value: object, name: str) -> NDArray[np.int64]:
    """Numbers of JSON, or those that a table has in an array."""
    is_array = isinstance(value, array) and value.typecode == "q"
    if is_array or (isinstance(value, list) and all(type(token) is int and abs(token) < 2**31 for token in value)):
        numbers = np.array(value, np.int64)
        if len(numbers) and numbers.min() > -(2**31) and numbers.max() < 2**31:
            return numbers
    raise BadRowError(f'"{name}" is no array of whole numbers', "Write one for each token")


_PARSERS: dict[DatasetFormat, Callable[[Fields], AnyRow]] = {
    DatasetFormat.MESSAGES: _messages,
    DatasetFormat.SHARE_GPT: _share_gpt,
    DatasetFormat.ALPACA: _alpaca,
    DatasetFormat.PROMPT_COMPLETION: _prompt_completion,
    DatasetFormat.PREFERENCE: _preference,
    DatasetFormat.TEXT: _passage,
    DatasetFormat.TOKENS: _tokens,
}
