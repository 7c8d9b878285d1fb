"""The formats of rows: by which fields each is known, and how it is read."""

from collections.abc import Callable, Mapping
from typing import Any

from sluice_api.dataset import DatasetFormat
from sluice_api.reasons import Reason
from sluice_trainer.data.row import BadRowError, Conversation, Pair, Passage, Row, Turn, optional_text_of, text_of
from sluice_trainer.data.turns import require_answer, tools_of, turns_of
from sluice_trainer.errors import StageError

Fields = Mapping[str, Any]

FIELDS: dict[DatasetFormat, tuple[tuple[str, ...], ...]] = {
    DatasetFormat.MESSAGES: (("messages",),),
    DatasetFormat.SHARE_GPT: (("conversations",),),
    DatasetFormat.ALPACA: (("instruction", "output"),),
    DatasetFormat.PROMPT_COMPLETION: (("prompt", "completion"),),
    DatasetFormat.PREFERENCE: (("chosen", "rejected"), ("input", "preferred_output", "non_preferred_output")),
    DatasetFormat.TEXT: (("text",),),
}
"""The fields of a row of each format, or of its spellings."""
_ALL_FORMATS = (
    '"messages"; "conversations"; "instruction" and "output"; "prompt" and "completion"; "chosen" and "rejected", with '
    'or without "prompt"; or "text"'
)


def has_format(fields: Fields, form: DatasetFormat) -> bool:
    """Whether a row has the fields of a format."""
    return any(all(fields.get(name) is not None for name in names) for names in FIELDS.get(form, ()))


def format_of(fields: Fields, expected: DatasetFormat, place: str) -> DatasetFormat:
    """The format of a row.

    Args:
        fields: The row.
        expected: What the job says, or Auto.
        place: The row, for a message.

    Raises:
        BadRowError: it has no format's fields.
        StageError: it has those of several, and the job does not say which is meant.
    """
    if has_format(fields, expected):
        return expected
    found = [form for form in FIELDS if has_format(fields, form)]
    if not found:
        names = ", ".join(f'"{name}"' for name in list(fields)[:6]) or "no field"
        wanted = " and ".join(f'"{name}"' for name in FIELDS[expected][0]) if expected in FIELDS else _ALL_FORMATS
        raise BadRowError(f"the row has {names}, not {wanted}", f"Give the row {wanted}")
    if len(found) > 1 and expected is DatasetFormat.AUTO:
        raise StageError(
            Reason.DATASET_INVALID,
            f"{place}: the row can be read as {' or as '.join(found)}. Set dataset.format to the one that is meant.",
        )
    return found[0]


def parse(fields: Fields, form: DatasetFormat, place: str) -> Row:
    """Read a row of a format.

    Raises:
        BadRowError: it can't be trained on.
        StageError: no row of such a dataset can.
    """
    if form is DatasetFormat.PROMPT_COMPLETION and isinstance(fields.get("label"), bool):
        raise StageError(
            Reason.DATASET_INVALID,
            f'{place}: "label" says whether an answer is good (KTO), and what it calls bad would be learnt too. Keep '
            'the good rows without "label", or write good and bad answers to one prompt as "chosen" and "rejected".',
        )
    return _PARSERS[form](fields)


def _messages(fields: Fields) -> Row:
    return _conversation(fields, "messages")


def _share_gpt(fields: Fields) -> Row:
    return _conversation(fields, "conversations")


def _conversation(fields: Fields, name: str) -> Conversation:
    turns = turns_of(fields, name)
    if isinstance(fields.get("system"), str) and fields["system"].strip() and turns and turns[0].role != "system":
        turns = (Turn("system", fields["system"], "system"), *turns)  # as LLaMA-Factory has it beside a conversation
    require_answer(name, turns)
    return Conversation(turns, tools_of(fields))


def _alpaca(fields: Fields) -> Row:
    question = text_of(fields, "instruction")
    if (more := optional_text_of(fields, "input")).strip():
        question = f"{question}\n\n{more}" if question.strip() else more
    system = optional_text_of(fields, "system")
    before = (Turn("system", system, "system"),) if system.strip() else ()
    asked, answer = Turn("user", question, "instruction"), Turn("assistant", text_of(fields, "output"), "output")
    return Conversation((*before, *_alpaca_history(fields), asked, answer))


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


def _prompt_completion(fields: Fields) -> Row:
    asked = _asked(fields, "prompt")
    if isinstance(fields["completion"], list):
        answer = turns_of(fields, "completion")
        require_answer("completion", (*asked, *answer))
    else:
        answer = (Turn("assistant", text_of(fields, "completion"), "completion"),)
    return Conversation((*asked, *answer), tools_of(fields))


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
        asked = _asked(fields, "prompt") if fields.get("prompt") is not None else ()
        names, tools = ("chosen", "rejected"), tools_of(fields)
    answers = [_answer(fields, name) for name in names]
    common = next((i for i, (a, b) in enumerate(zip(*answers, strict=False)) if _said(a) != _said(b)), None)
    if common is None:
        raise BadRowError(f'"{names[0]}" and "{names[1]}" are the same', "Leave the row out: nothing can be preferred")
    before, sides = answers[0][:common], [answer[common:] for answer in answers]
    if before and [*map(_said, asked)] == [*map(_said, before)][-len(asked) :]:
        asked = ()  # it is in the answers too
    turns = tuple(Turn(turn.role, turn.content, turn.at, False, turn.more) for turn in (*asked, *before))
    if not turns or turns[-1].role not in ("user", "tool"):
        raise BadRowError(
            "there is no prompt before the two answers" if not turns else f'"prompt" ends with the {turns[-1].role}',
            "End it with what the user says",
        )
    for name, side in zip(names, sides, strict=True):
        if [turn.role for turn in side] != ["assistant"]:
            raise BadRowError(
                f'"{name}" is not one turn of the assistant', 'Write the answer alone; what is before is "prompt"'
            )
    return Pair(*(Conversation((*turns, *side), tools) for side in sides))


def _answer(fields: Fields, name: str) -> tuple[Turn, ...]:
    if isinstance(fields[name], list):
        return turns_of(fields, name)
    return (Turn("assistant", text_of(fields, name), name),)


def _said(turn: Turn) -> tuple[str, str, Mapping[str, Any]]:
    return turn.role, turn.content, turn.more


def _passage(fields: Fields) -> Row:
    return Passage(text_of(fields, "text"))


_PARSERS: dict[DatasetFormat, Callable[[Fields], Row]] = {
    DatasetFormat.MESSAGES: _messages,
    DatasetFormat.SHARE_GPT: _share_gpt,
    DatasetFormat.ALPACA: _alpaca,
    DatasetFormat.PROMPT_COMPLETION: _prompt_completion,
    DatasetFormat.PREFERENCE: _preference,
    DatasetFormat.TEXT: _passage,
}
