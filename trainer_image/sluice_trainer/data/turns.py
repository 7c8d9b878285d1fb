"""Conversations as people write them: OpenAI's messages and ShareGPT's, with tools, reasoning, parts and weights."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sluice_trainer.data.read.jsons import require_shallow, require_unicode, why_not_json
from sluice_trainer.data.row import REASONING, BadRowError, Turn, kind_of, shown

_OPENAI = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_SHARE_GPT = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "model": "assistant", "assistant": "assistant", "function_call": "assistant", "observation": "tool", "tool": "tool",
    "function_response": "tool",
}  # fmt: skip
_CALL = ("id", "type", "index", "description")
"""What a call may have that says nothing of what the function is given."""


def turns_of(fields: Mapping[str, Any], name: str, *, learnt: bool = True) -> tuple[Turn, ...]:
    """Read the turns of a field.

    Args:
        fields: The row.
        name: Of the field with the array of messages.
        learnt: Whether the loss counts what the assistant says there.

    Raises:
        BadRowError: one is no message.
    """
    messages = fields.get(name)
    if isinstance(messages, str) and messages.lstrip().startswith("["):  # a cell of a table
        messages = _parsed(messages, f'"{name}"')
    if isinstance(messages, dict):
        messages = _of_columns(messages) or messages
    if not isinstance(messages, list) or not messages:
        kind = "empty" if messages == [] else f"{kind_of(messages)}, not an array"
        raise BadRowError(f'"{name}" is {kind}', 'Write [{"role": ..., "content": ...}, ...]')
    found = (_turn(f"{name}[{index}]", message, learnt=learnt) for index, message in enumerate(messages))
    turns = tuple(turn for turn in found if turn is not None)
    for before, turn in zip((None, *turns), turns, strict=False):
        if turn.role == "tool" and not (before and (before.role == "tool" or "tool_calls" in before.more)):
            raise BadRowError(
                f'"{turn.at}" is the result of a tool that no turn before it calls',
                "Put the assistant's turn with its tool_calls before it",
            )
    return turns


def _of_columns(messages: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Turns that are written as {"role": [...], "content": [...]}, as datasets' Sequence of an object becomes."""
    columns = {name: values for name, values in messages.items() if isinstance(values, list)}
    if len(columns) < len(messages) or len({len(values) for values in columns.values()}) != 1:
        return None
    turns = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return [{name: value for name, value in turn.items() if value is not None} for turn in turns]


def tools_of(fields: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Read the functions that a row offers: an array, or the text of one, as some data sets keep it.

    Raises:
        BadRowError: it is neither.
    """
    tools = fields.get("tools")
    if isinstance(tools, str) and tools.strip():
        tools = _parsed(tools, '"tools"')
    if not tools:
        return ()
    if not isinstance(tools, list):
        raise BadRowError(f'"tools" is {kind_of(tools)}, not an array of objects', "Write it as OpenAI does")
    return tuple(_tool(f"tools[{index}]", tool) for index, tool in enumerate(tools))


def require_answer(name: str, turns: Sequence[Turn]) -> None:
    """Refuse turns without an answer at their end, or without a question before it.

    Raises:
        BadRowError: there is nothing to learn.
    """
    last = turns[-1].role if turns else "system"
    if last != "assistant":
        raise BadRowError(
            f'"{name}" ends with the {last}; there is nothing to learn in this row'
            if not any(turn.role == "assistant" for turn in turns)
            else f'"{name}" ends with the {last}, who gets no answer',
            "Add an assistant turn",
        )
    if turns[0].role == "assistant":
        raise BadRowError(f'"{name}" begins with the assistant', "Put the user's turn before it")
    if not any(turn.role == "assistant" and turn.learnt for turn in turns):
        raise BadRowError(
            f'every answer of "{name}" has the weight 0; there is nothing to learn in this row', "Leave the row out"
        )


def _turn(where: str, message: object, *, learnt: bool) -> Turn | None:
    """One turn; None for a system turn that says nothing, as many tools write it."""
    if not isinstance(message, dict):
        raise BadRowError(f'"{where}" is {kind_of(message)}, not an object', 'Write {"role": ..., "content": ...}')
    is_share_gpt = "from" in message and "role" not in message
    roles, said_by, said = (_SHARE_GPT, "from", "value") if is_share_gpt else (_OPENAI, "role", "content")
    role = roles.get(name) if isinstance(name := message.get(said_by), str) else None
    if role is None:
        names = ", ".join(dict.fromkeys(roles))
        raise BadRowError(f'"{where}.{said_by}" is {shown(name)}', f"Use one of {names}")
    if message.get("function_call"):
        raise BadRowError(f'"{where}.function_call" is of an older API', 'Write "tool_calls" instead')
    value, more = message.get(said), dict(_more(where, role, message))
    if is_share_gpt and name == "function_call":
        more["tool_calls"], value = _calls_in(f"{where}.{said}", value), None
    content = _content(f"{where}.{said}", value, may_be_null="tool_calls" in more or role in ("system", "tool"))
    if role == "system" and not content.strip():
        return None
    return Turn(role, content, f"{where}.{said}", learnt and _is_learnt(where, message), more)


def _more(where: str, role: str, message: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the chat template gets besides role and content."""
    for name in ("name", "tool_call_id"):
        if isinstance(message.get(name), str):
            yield name, message[name]
    if role != "assistant":
        return
    if calls := message.get("tool_calls"):
        yield "tool_calls", _calls(f"{where}.tool_calls", calls)
    thoughts = next((name for name in REASONING if message.get(name)), None)
    if thoughts is not None:
        if not isinstance(message[thoughts], str):
            raise BadRowError(f'"{where}.{thoughts}" is {kind_of(message[thoughts])}, not a string', "Make it a string")
        yield from ((name, message[thoughts]) for name in REASONING)


def _content(where: str, value: object, *, may_be_null: bool) -> str:
    """The text of a turn; parts are joined as vLLM joins them."""
    if isinstance(value, list):
        value = "\n".join(_part(f"{where}[{index}]", part) for index, part in enumerate(value))
    if value is None and may_be_null:
        return ""
    if not isinstance(value, str):
        raise BadRowError(f'"{where}" is {kind_of(value)}, not a string', "Make it a string")
    return value


def _part(where: str, part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        kind = shown(part.get("type")) if isinstance(part, dict) else kind_of(part)
        if what := next((word for word in ("image", "audio", "video", "file") if word in kind), None):
            article = "a" if what[0] in "vf" else "an"
            raise BadRowError(
                f'"{where}" is {article} {what} ({kind}), and only text can be trained on here', "Leave the row out"
            )
        raise BadRowError(f'"{where}" is {kind}, not a text', "Only text can be trained on: leave the row out")
    return str(part["text"])


def _is_learnt(where: str, message: Mapping[str, Any]) -> bool:
    """Whether the loss counts a turn, by OpenAI's `weight` or axolotl's `train`."""
    for name in ("weight", "train"):
        value = message.get(name)
        if value is not None and value not in (0, 1):
            raise BadRowError(f'"{where}.{name}" is {shown(value)}', "Write 0 or 1: a turn is learnt or not")
        if value is not None:
            return bool(value)
    return True


def _tool(where: str, tool: object) -> dict[str, Any]:
    """One function, as whoever asks has to write it and templates get it then: {"type": ..., "function": {...}}."""
    if isinstance(tool, str):
        tool = _parsed(tool, f'"{where}"')
    if not isinstance(tool, dict):
        raise BadRowError(f'"{where}" is {kind_of(tool)}, not an object', "Write it as OpenAI does")
    if "function" in tool:
        return tool
    if not isinstance(tool.get("name"), str):
        raise BadRowError(f'"{where}" has no "function" and no "name"', "Write it as OpenAI does")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _calls(where: str, calls: object) -> list[dict[str, Any]]:
    """Tool calls with their arguments as objects: vLLM gives them to templates so, though OpenAI writes texts."""
    if not isinstance(calls, list):
        raise BadRowError(f'"{where}" is {kind_of(calls)}, not an array', "Write it as OpenAI does")
    return [_call(f"{where}[{index}]", call) for index, call in enumerate(calls)]


def _call(where: str, call: object) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRowError(
            f'"{where}" is no call of a function', 'Write {"function": {"name": ..., "arguments": {...}}}'
        )
    if "arguments" not in function and (others := sorted(function.keys() - {"name", *_CALL})):
        raise BadRowError(
            f'"{where}.function" has "{others[0]}", and no "arguments"', 'Call what the function is given "arguments"'
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f'"{where}.function.arguments"') if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise BadRowError(
            f'"{where}.function.arguments" is {kind_of(arguments)}', "Write an object, or the text of one"
        )
    beside = {name: value for name, value in call.items() if name in ("id", "type")}
    return {"type": "function", **beside, "function": {"name": function["name"], "arguments": arguments}}


def _calls_in(where: str, value: object) -> list[dict[str, Any]]:
    """The calls that a turn of ShareGPT's function_call has in its text."""
    found = _parsed(value, f'"{where}"') if isinstance(value, str) else value
    return _calls(where, found if isinstance(found, list) else [found])


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        problem, remedy = why_not_json(error)
        raise BadRowError(
            f"{where} is not JSON: {problem}", remedy if "json.dumps" in remedy else "Write the text of a JSON value"
        ) from None
    except (ValueError, RecursionError):
        raise BadRowError(f"{where} is not JSON", "Write the text of a JSON value") from None
    require_shallow(value, text.count("[") + text.count("{"), f"{where} is ")
    require_unicode(value)
    return value
