"""A row as text: rendered with the chat template, in parts that the loss counts and parts that it does not."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

from sluice_api.chat_template import TemplateName
from sluice_api.reasons import Reason
from sluice_trainer.base_model import BaseModel
from sluice_trainer.data.row import REASONING, BadRowError, Conversation, Pair, Passage, Text, Turn
from sluice_trainer.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPENED = re.compile(r"\s*<(\w+)>\s*")
"""What a generation prompt begins the answer with, such as <think>."""
_SHOWN = {"tool_calls": ("tool_calls",), "reasoning": REASONING}
"""What a turn may have besides its text, under the names that templates read."""


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered row, and whether the loss counts its tokens."""

    text: str
    in_loss: bool
    has_end: bool = False
    """Whether a special token follows what is said, with which it ends."""


class Renderer:
    """A chat template, and what it makes of rows."""

    def __init__(
        self,
        base: BaseModel,
        tokenizer: "PreTrainedTokenizerBase",
        specials: Collection[str],
        stops: Collection[str],
        given: str | None = None,
    ) -> None:
        """Use a template that was given, or the tokenizer's own.

        Args:
            base: The model that it is of.
            tokenizer: Has the template, unless one is given.
            specials: Texts of the special tokens.
            stops: Of these, the ones at which serving ends an answer.
            given: The text of model.chatTemplate.
        """
        self._given = given
        self._base = base
        self._tokenizer = tokenizer
        self._stops = tuple(sorted(stops, key=len, reverse=True))
        self._special = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or r"(?!)")
        self._has_prompt = False
        """Whether the template was seen to begin an answer."""
        self.template = self._template()
        """The text of the template; empty when the model has none."""
        if given is not None:
            self._check_given()

    def parts(self, row: Text | Pair) -> list[list[Part]]:
        """Render a row: one text or several, each in its parts; of a pair, the chosen one and the rejected one.

        Raises:
            BadRowError: the template refuses the row, or leaves out something that it says, or the row has the text of
                a special token in it.
            StageError: ModelInvalid, when the template can't be used.
        """
        if isinstance(row, Pair):
            return [self._texts(side)[-1] for side in (row.chosen, row.rejected)]
        return self._texts(row)

    def _template(self) -> str:
        """The one template; of several that have names, the one called default, as vLLM takes it."""
        if self._given is not None:
            self._tokenizer.chat_template = self._given
        template = self._tokenizer.chat_template
        if isinstance(template, dict):
            if "default" not in template:
                raise self._invalid(
                    f"its tokenizer has the chat templates {', '.join(template)}, and none is called default. Leave "
                    "the one that is meant as chat_template.jinja."
                )
            template = self._tokenizer.chat_template = template["default"]
        return template if isinstance(template, str) else ""

    def _check_given(self) -> None:
        """Refuse a template that was given and can't be used with the model, before any row is rendered."""
        if not self._tokenizer.eos_token:
            raise self._invalid(
                "its tokenizer has no eos_token, with which an answer ends. Set eos_token in its tokenizer_config.json."
            )
        asked, answered = self._probed() or ("", "")
        _, found, end = answered.removeprefix(asked).rpartition("answer")
        if found and (rest := self._special.sub("", end).strip()):
            raise self._invalid(
                f"{self._whose} ends an answer with {rest!r}, which is no special token of the model's tokenizer, so "
                "that serving would show it. Write {{ eos_token }} in its place, or use a built-in template."
            )

    def _probed(self) -> tuple[str, str] | None:
        """What the template makes of the plainest question, and of that with its answer; None if it refuses them: the
        rows have what it expects, or are refused."""
        turns = (Turn("user", "question", "messages[0]"), Turn("assistant", "answer", "messages[1]"))
        try:
            return (
                self._render(Conversation(turns), 1, answer_next=True),
                self._render(Conversation(turns), 2, answer_next=False),
            )
        except BadRowError:
            return None

    def _check_shows_rows(self) -> None:
        """Refuse a template that leaves out what any row says; then it is not the row's fault."""
        probed = self._probed()
        missing = [name for name in ("question", "answer") if probed and name not in probed[1]]
        if missing:
            raise self._invalid(
                f"{self._whose} leaves out every {' and '.join(missing)}: it reads none of message['content']. Mend "
                "it, or use another one."
            )

    @property
    def _whose(self) -> str:
        return "its chat template" if self._given is None else "model.chatTemplate"

    @property
    def _of_rows(self) -> str:
        return "the model's chat template" if self._given is None else "model.chatTemplate"

    def _texts(self, row: Text) -> list[list[Part]]:
        match row:
            case Passage(text):
                return [[Part(text, in_loss=True)]]
            case Conversation() if self.template:
                self._check(row)
                return self._conversation(row)
            case Conversation(turns) if row.is_plain:
                asked, answer = turns
                return [[Part(asked.content, in_loss=False), self._answer(answer, answer.content)]]
        raise self._invalid(
            "its tokenizer has no chat template, and only one can show who says what in such rows. Set "
            f"model.chatTemplate to {{name: ...}}, one of {', '.join(TemplateName)}, or use an instruction-tuned "
            'model. Plain texts as "prompt" and "completion" need none.'
        )

    def _check(self, row: Conversation) -> None:
        """Refuse a row that would not be learnt as it is written."""
        for index, turn in enumerate(row.turns):
            for text in (turn.content, str(turn.more.get("reasoning_content", ""))):
                if special := self._special.search(text):
                    raise BadRowError(
                        f'"{turn.at}" has the special token {special[0]} in it',
                        "Remove it: the chat template adds such tokens itself",
                    )
            for what, names in _SHOWN.items():
                if any(name in turn.more for name in names) and self._leaves_out(row, index, names):
                    raise BadRowError(
                        f'{self._of_rows} leaves out the {what} beside "{turn.at}"',
                        "Leave the row out, or use a chat template that has them",
                    )
        asked = next(index for index, turn in enumerate(row.turns) if turn.role == "assistant")
        if row.tools and self._render(row, asked, answer_next=True) == self._render(
            Conversation(row.turns), asked, answer_next=True
        ):
            raise BadRowError(
                f'{self._of_rows} leaves out "tools"',
                "Leave the row out, or use a chat template that has them",
            )

    def _leaves_out(self, row: Conversation, index: int, names: Collection[str]) -> bool:
        turn = row.turns[index]
        without = Turn(turn.role, turn.content, more={k: value for k, value in turn.more.items() if k not in names})
        other = Conversation((*row.turns[:index], without), row.tools)
        return self._render(row, index + 1, answer_next=False) == self._render(other, index + 1, answer_next=False)

    def _conversation(self, row: Conversation) -> list[list[Part]]:
        """One text, if the template only appends; otherwise one for each answer, with what is before it only read."""
        answers = [index for index, turn in enumerate(row.turns) if turn.role == "assistant"]
        rendered = {
            index: (self._render(row, index, answer_next=True), self._render(row, index + 1, answer_next=False))
            for index in answers
        }
        self._check_shown(row, rendered)
        if not self._has_prompt:
            self._check_prompt(row, answers[0], *rendered[answers[0]])
        if (whole := self._appended(row, rendered)) is not None:
            return [whole]
        return [self._alone(row, index, *rendered[index]) for index in answers if row.turns[index].learnt]

    def _appended(self, row: Conversation, rendered: Mapping[int, tuple[str, str]]) -> list[Part] | None:
        """The parts of a whole conversation; None if it is served otherwise than as one text that grows."""
        parts: list[Part] = []
        done = ""
        for index, (asked, answered) in rendered.items():
            if not asked.startswith(done) or not answered.startswith(asked):
                return None
            between = asked[len(done) :]
            if parts and not parts[-1].has_end:
                # The answer before has no end of its own. Serving stops it where the next turn begins.
                stop = next((stop for stop in self._stops if between.startswith(stop)), None)
                if stop is None:
                    return None
                parts[-1] = Part(parts[-1].text + stop, parts[-1].in_loss, has_end=True)
                between = between.removeprefix(stop)
            parts += [Part(between, in_loss=False), self._answer(row.turns[index], answered[len(asked) :])]
            done = answered
        return parts

    def _alone(self, row: Conversation, index: int, asked: str, answered: str) -> list[Part]:
        """One answer, begun as serving begins it, and all before it as serving shows it then."""
        if answered.startswith(asked):
            return [Part(asked, in_loss=False), self._answer(row.turns[index], answered[len(asked) :])]
        # The prompt may begin the answer with <think>, and the template leave thoughts out of what was said.
        same = next((n for n, (a, b) in enumerate(zip(asked, answered, strict=False)) if a != b), len(answered))
        tag = _OPENED.fullmatch(asked[same:])
        if tag is None:
            raise self._invalid(
                f"{self._whose} writes an answer otherwise than its own generation prompt begins it (seen at "
                f"\"{row.turns[index].at}\"), so the assistant's tokens can't be told from the rest. Use a template "
                "that only appends."
            )
        thoughts = str(row.turns[index].more.get("reasoning_content", ""))
        text = f"{thoughts}\n</{tag[1]}>\n\n{answered[same:]}"
        return [Part(asked, in_loss=False), self._answer(row.turns[index], text)]

    def _answer(self, turn: Turn, text: str) -> Part:
        """What the template makes of an answer. A special token before what is said, such as </think>, is no end."""
        last, said = next(reversed([*self._special.finditer(text)]), None), turn.content.strip()
        has_end = last is not None and (said not in text or said in text[: last.start()])
        return Part(text, turn.learnt, has_end)

    def _check_shown(self, row: Conversation, rendered: Mapping[int, tuple[str, str]]) -> None:
        """Refuse a row of which the template leaves out what a turn says, or what the assistant thinks before it."""
        for index, turn in enumerate(row.turns):
            answer = next(answer for answer in rendered if answer >= index)
            shown, said = rendered[answer][1], turn.content.strip()
            if said in shown:
                continue
            silent = (*row.turns[:index], Turn(turn.role, "", more=turn.more), *row.turns[index + 1 : answer + 1])
            thought, closed, _ = said.partition("</think>")
            is_cut = turn.role == "assistant" and closed and "".join(thought.split()) not in "".join(shown.split())
            if is_cut or self._is_same(Conversation(silent, row.tools), shown):
                self._check_shows_rows()
                raise BadRowError(
                    f'{self._of_rows} leaves out {"what is thought in" if is_cut else "all of"} "{turn.at}"',
                    "Leave the row out, or use a chat template that has it",
                )

    def _is_same(self, row: Conversation, shown: str) -> bool:
        try:
            return self._render(row, len(row.turns), answer_next=False) == shown
        except BadRowError:
            return False  # it refuses a turn that says nothing

    def _check_prompt(self, row: Conversation, index: int, asked: str, answered: str) -> None:
        """Refuse a template that does not begin the assistant's turn: the model would, and serving would show that."""
        said = row.turns[index].content.strip()
        if not said:
            return  # it calls a tool; a later row tells
        self._has_prompt = True
        begins = answered.removeprefix(asked).partition(said)[0]
        special = self._special.search(begins)
        if special and special[0] in asked and asked == self._render(row, index, answer_next=False):
            raise self._invalid(
                f"{self._whose} has no generation prompt, so that an answer would begin with {begins!r}, and who asks "
                f"would see that. Add {{% if add_generation_prompt %}}{begins}{{% endif %}} to its end."
            )

    def _render(self, row: Conversation, turns: int, *, answer_next: bool) -> str:
        messages: Sequence[Mapping[str, Any]] = [turn.message for turn in row.turns[:turns]]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tools=[*row.tools] or None, tokenize=False, add_generation_prompt=answer_next
            )
        except (TemplateSyntaxError, UndefinedError) as error:
            place = f" (line {error.lineno})" if isinstance(error, TemplateSyntaxError) else ""
            raise self._invalid(f"{self._whose} is wrong: {error}{place}. Mend it, or use another one.") from error
        except TemplateError as error:
            raise BadRowError(
                f"{self._of_rows} refuses the row: {error}", "Write the turns as the template expects"
            ) from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise self._invalid(
                f"{self._whose} fails with {type(error).__name__}: {error}. Mend it, or use another one."
            ) from error
        return cast("str", text)

    def _invalid(self, why: str) -> StageError:
        return StageError(Reason.MODEL_INVALID, f"model.uri {self._base.uri}: {why}")
