"""Large clean files of rows, in the shapes of public data sets: nothing is to be found in them."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.unit.trainer.conftest import CHATML

ROWS = 2000
Rows = Sequence[Any]

_SOME = """
order parcel invoice street garden winter summer coffee bridge market letter window river mountain station doctor
teacher engine camera battery screen kettle blanket carpet ladder harbour festival recipe pepper onion butter castle
village museum ticket pocket button jacket leather silver copper marble canvas pencil mirror candle basket bottle saddle
anchor compass lantern orchard meadow valley forest island desert tunnel planet comet
"""
WORDS = _SOME.split()
CHINESE, ARABIC, EMOJI = (
    "今天天气很好我们去公园散步看书喝茶学习中文音乐电影",
    "السلام عليكم كيف حالك اليوم",
    "😀🎉🚀👩‍💻❤️",
)


def sentence(random: Random, words: int) -> str:
    """Some words, of which no two rows have the same."""
    return " ".join(random.choices(WORDS, k=words))


def jsonl(rows: Rows) -> bytes:
    """One object a line; bytes are written as they are."""
    lines = (row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows)
    return b"".join(line + b"\n" for line in lines)


def array(rows: Rows) -> bytes:
    """A JSON array with one row a line."""
    return b"[\n" + b",\n".join(jsonl([row])[:-1] for row in rows) + b"\n]\n"


def table_csv(rows: Rows) -> bytes:
    """A CSV file with a header; bytes are written as they are."""
    header = list(next(row for row in rows if isinstance(row, dict)))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    for row in rows:
        if isinstance(row, bytes):
            text.write(row.decode() + "\r\n")
        else:
            writer.writerow([row[name] for name in header])
    return text.getvalue().encode()


def parquet(rows: Rows) -> bytes:
    """A Parquet file."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, row_group_size=500)
    return sink.getvalue()


def arrow(rows: Rows) -> bytes:
    """An Arrow file."""
    sink = io.BytesIO()
    table = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)
    return sink.getvalue()


@dataclass(frozen=True)
class Clean:
    """A kind of clean file."""

    name: str
    """Of the file."""
    row: Callable[[Random, int], Any]
    """Makes the row of a number."""
    encode: Callable[[Rows], bytes] = jsonl
    unit: str = "line"
    first: int = 1
    """The number of its first row."""
    dataset: dict[str, Any] = field(default_factory=dict)
    template: str = CHATML

    @cache  # noqa: B019 - a dozen of them, as long as the tests
    def rows(self) -> Rows:
        """Its rows, the same ones each time."""
        random = Random(self.name)
        return tuple(self.row(random, number) for number in range(ROWS))

    def __hash__(self) -> int:
        return hash((self.name, self.row))


def messages(random: Random, _: int) -> dict[str, Any]:
    """OpenAI's."""
    return {
        "messages": [
            {"role": "user", "content": sentence(random, 6)},
            {"role": "assistant", "content": sentence(random, 8)},
        ]
    }


def share_gpt(random: Random, _: int) -> dict[str, Any]:
    turns = (("human", 4), ("gpt", 5), ("human", 3), ("gpt", 4))
    return {"conversations": [{"from": who, "value": sentence(random, words)} for who, words in turns]}


def alpaca(random: Random, number: int) -> dict[str, Any]:
    return {
        "instruction": sentence(random, 6),
        "input": sentence(random, 3) if number % 3 else "",
        "output": sentence(random, 8),
    }


def dolly(random: Random, number: int) -> dict[str, Any]:
    row = alpaca(random, number)
    return {
        "instruction": row["instruction"],
        "context": row["input"],
        "response": row["output"],
        "category": "open_qa",
    }


def open_orca(random: Random, number: int) -> dict[str, Any]:
    return {
        "id": f"niv.{number}",
        "system_prompt": "Be brief." if number % 2 else "",
        "question": sentence(random, 6),
        "response": sentence(random, 8),
    }


TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]


def tool_calls(random: Random, number: int) -> dict[str, Any]:
    """OpenAI's, with arguments as a text and content that is null."""
    call = {"id": f"c{number}", "type": "function"}
    call |= {"function": {"name": "find", "arguments": json.dumps({"what": sentence(random, 1)})}}  # type: ignore[dict-item]
    return {
        "messages": [
            {"role": "user", "content": sentence(random, 4)},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": sentence(random, 2)},
            {"role": "assistant", "content": sentence(random, 4)},
        ],
        "tools": TOOLS,
    }


def preference(random: Random, _: int) -> dict[str, Any]:
    asked = [{"role": "user", "content": sentence(random, 5)}]
    sides = ([*asked, {"role": "assistant", "content": sentence(random, 6)}] for _ in range(2))
    return dict(zip(("chosen", "rejected"), sides, strict=True))


def text(random: Random, _: int) -> dict[str, Any]:
    return {"text": f"{sentence(random, 12).capitalize()}.\n{sentence(random, 8).capitalize()}."}


def prompts(random: Random, number: int) -> dict[str, Any]:
    return {
        "act": f"Guide {number}",
        "prompt": f'I want you to act as "{sentence(random, 4)}", \nand {sentence(random, 6)}.',
    }


def other_scripts(random: Random, number: int) -> dict[str, Any]:
    letters = (CHINESE, ARABIC.replace(" ", ""), EMOJI + CHINESE)[number % 3]
    asked, answered = ("".join(random.choices(letters, k=count)) for count in (10, 16))
    return {"prompt": f"{asked}?", "completion": f"{answered} {sentence(random, 1)}"}


def code(random: Random, _: int) -> dict[str, Any]:
    name, other = sentence(random, 2).replace(" ", "_"), sentence(random, 3).replace(" ", "_")
    answer = f"```python\ndef {name}(a: list[int]) -> int:\n\treturn a[0] < 3 and {other!r} or {{1: '&amp;'}}\n```"
    return {"messages": [{"role": "user", "content": f"Write {name} for {other}, <b>now</b>"},
                         {"role": "assistant", "content": answer}]}  # fmt: skip


SHOWS_TOOLS = (
    "{% if tools %}{{ tools[0].function.name }}\n{% endif %}"
    + CHATML.replace(
        "{{ message.content }}",
        "{{ message.content }}{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}",
    )
)  # fmt: skip

MESSAGES = Clean("rows.jsonl", messages)
ALPACA_JSON = Clean("alpaca_data.json", alpaca, array, "row")
CSV = Clean("rows.csv", alpaca, table_csv, first=2)
ORCA = Clean("orca.parquet", open_orca, parquet, "row")
ARROW = Clean("rows.arrow", alpaca, arrow, "row")
TEXT = Clean("text.jsonl", text)
PAIRS = Clean("pairs.jsonl", preference)
COMPLETIONS = Clean("scripts.jsonl", other_scripts)
CALLS = Clean("calls.jsonl", tool_calls, template=SHOWS_TOOLS)

CONTROLS = (
    ALPACA_JSON,
    Clean("databricks-dolly-15k.jsonl", dolly),
    ORCA,
    Clean("share_gpt.jsonl", share_gpt),
    CALLS,
    PAIRS,
    TEXT,
    Clean("prompts.csv", prompts, table_csv, dataset={"fields": {"text": "prompt"}}),
    COMPLETIONS,
    Clean("code.jsonl", code, lambda rows: jsonl(rows).replace(b"\n", b"\r\n")),
)
"""In none of these is anything to be found. The last has the line ends of Windows."""
