"""Runs what an adapter brings of programs, once, in a process of its own that may take only so much.

vLLM renders an adapter's chat template for each request, in the process that serves all models: one that does not end
holds up everybody for VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT seconds, its thread is never stopped, and what Jinja folds
while it compiles, such as 9**(9**9), has no limit at all (vllm/renderers/hf.py). The keys of rank_pattern and
alpha_pattern are regular expressions, which vLLM matches with the names of the layers where it computes
(vllm/lora/peft_helper.py). What both cost is the adapter's choice, so it is found out here.

A template that waits for certain words of a conversation passes: an engine that takes adapters of strangers has
lora.chatTemplates for them.
"""

import json
import math
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

CPU_SECONDS = 10
MEMORY_BYTES = 128 * 2**20
"""Beside what Python and its libraries take. The agent has 512 MiB, the trial included."""
MAX_RENDERED = 2**20
"""Characters of a short conversation."""

_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
_ASKS, _ANSWERS = {"role": "user", "content": "Is it warm?"}, {"role": "assistant", "content": "Very."}
_CONVERSATIONS: tuple[tuple[dict[str, Any], ...], ...] = (
    (_ASKS,),
    ({"role": "system", "content": "Be brief."}, _ASKS, _ANSWERS, _ASKS),
    ({"role": "user", "content": [{"type": "text", "text": "Is it warm?"}]},),
    (
        _ASKS,
        {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [_CALL]},
        {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "30 C"},
    ),
    (_ASKS, _ANSWERS) * 20 + (_ASKS,),
)
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@lru_cache(maxsize=16)  # adapters that were trained alike have one template
def fault_of_template(text: str) -> str | None:
    """What is wrong with a chat template; None if it can be rendered for a few short conversations."""
    return _try("template", {"text": text})


def fault_of_patterns(patterns: Collection[str], layers: Collection[str]) -> str | None:
    """What is wrong with patterns that are matched with the names of layers; None if that takes little."""
    return _try("patterns", {"patterns": [*patterns], "layers": [*layers]}) if patterns else None


def _try(what: str, given: dict[str, Any]) -> str | None:
    tried = subprocess.run(
        [sys.executable, "-I", __file__, what, str(CPU_SECONDS)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode == -signal.SIGXCPU:
        return f"takes more than {CPU_SECONDS} seconds of a CPU"
    if tried.returncode == _OUT_OF_MEMORY:
        return f"takes more than {MEMORY_BYTES // 2**20} MiB of memory"
    if tried.returncode:
        raise RuntimeError(f"the trial of an adapter's {what} ended with {tried.returncode}: {tried.stderr[-500:]}")
    return tried.stdout or None


_OUT_OF_MEMORY = 3


def _template(given: dict[str, Any]) -> Callable[[], str]:
    """Renders as vLLM does, with transformers' own sandbox."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    def render() -> str:
        for turns in _CONVERSATIONS:
            for tools in (None, [_TOOL]):
                try:
                    rendered, _ = render_jinja_template(
                        [[*turns]], chat_template=given["text"], tools=tools, add_generation_prompt=True, **_SPECIAL
                    )
                except TemplateSyntaxError as error:
                    return f"is not Jinja: line {error.lineno}: {error.message}"
                except MemoryError:
                    raise
                except Exception:  # noqa: BLE001, S112 - whatever it raises: it may refuse a conversation
                    continue
                if len(rendered[0]) > MAX_RENDERED:
                    return f"makes {len(rendered[0]):,} characters of a short conversation"
        return ""

    return render


def _patterns(given: dict[str, Any]) -> Callable[[], str]:
    """Matches as vLLM does."""
    import regex

    def match() -> str:
        for layer in given["layers"]:
            for pattern in given["patterns"]:
                try:
                    regex.match(rf"(.*\.)?({pattern})$", layer)
                except regex.error as error:
                    return f"has {pattern[:200]!r}, which is no regular expression: {error}"
        return ""

    return match


def _run(what: str, seconds: int) -> None:
    """In the process of its own: print the fault, if there is one."""
    run = {"template": _template, "patterns": _patterns}[what](json.load(sys.stdin))
    spent = math.ceil(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + MEMORY_BYTES
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, spent + seconds),
    ):
        resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
    try:
        sys.stdout.write(run())
    except MemoryError:
        sys.exit(_OUT_OF_MEMORY)


if __name__ == "__main__":
    _run(sys.argv[1], int(sys.argv[2]))
