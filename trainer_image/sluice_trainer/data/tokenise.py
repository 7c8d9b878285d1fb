"""Rows to tokens: rendered with the model's own chat template, with a loss only on what the assistant says.

Templates seldom mark the assistant's part (SmolLM2's does not), so it is found by rendering prefixes of the
conversation: what the template adds between "the assistant's turn begins" and "it has ended" is the assistant's.
Each part is tokenised by itself, so that the prompt has exactly the tokens that it has when the model serves.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, cast

import numpy as np
from jinja2 import TemplateError

from sluice_api.reasons import Reason
from sluice_api.training import OverlongRows
from sluice_trainer.base_model import BaseModel, stop_tokens
from sluice_trainer.data.overlong import fit_pair, fit_row
from sluice_trainer.data.rows import BadRowError, Conversation, Findings, Pair, Passage, Row, Text
from sluice_trainer.errors import StageError
from sluice_trainer.prepared import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK_ROWS = 256
"""Rows whose parts go to the tokenizer in one call."""


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered row, and whether the loss counts its tokens."""

    text: str
    in_loss: bool


class Tokeniser:
    """A base model's tokenizer and chat template, for rows of at most `longest` tokens."""

    def __init__(self, base: BaseModel, longest: int, overlong: OverlongRows) -> None:
        self._base = base
        self._longest = longest
        self._overlong = overlong
        self._tokenizer = _load(base)
        specials = {str(token): index for index, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = np.array(sorted({*specials.values(), *self._tokenizer.all_special_ids}), np.int32)
        self._special_text = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or r"(?!)")
        self._begin: int | None = self._tokenizer.bos_token_id
        self._end: int | None = self._tokenizer.eos_token_id
        self._stops = stop_tokens(base, self._end)
        self._beginning: list[int] = [token for token in self._tokenizer("")["input_ids"] if token == self._begin]
        """Tokens that serving puts before a text without a template: BOS, for tokenizers that add it."""

    @property
    def chat_template(self) -> str:
        """The template that rows are rendered with; empty when the model has none."""
        template = self._tokenizer.chat_template
        return template if isinstance(template, str) else ""

    @property
    def added_tokens(self) -> dict[int, str]:
        """The tokens that were added to the vocabulary, special ones among them, by their ids."""
        return {index: str(token) for index, token in self._tokenizer.added_tokens_decoder.items()}

    def tokenise(self, rows: Iterable[tuple[int, Row]], findings: Findings) -> Iterator[list[TokenRow]]:
        """Tokenise rows in order; rows that can't be trained on are noted in `findings`."""
        rows = iter(rows)
        while chunk := list(islice(rows, _CHUNK_ROWS)):
            rendered: list[tuple[int, list[Text], list[list[Part]]]] = []
            for line, row in chunk:
                texts: list[Text] = [row.chosen, row.rejected] if isinstance(row, Pair) else [row]
                try:
                    rendered.append((line, texts, [self.parts(text, line) for text in texts]))
                except BadRowError as error:
                    findings.refuse(line, error)
            texts_of_parts = [part.text for _, _, sides in rendered for parts in sides for part in parts]
            ids = iter(self._ids(texts_of_parts) if texts_of_parts else [])
            for line, texts, sides in rendered:
                tokens = [[(next(ids), part.in_loss) for part in parts] for parts in sides]
                try:
                    joined = [self._join(*each, line) for each in zip(texts, tokens, strict=True)]
                    if made := self._fit(joined, findings):
                        yield made
                except BadRowError as error:
                    findings.refuse(line, error)

    def parts(self, row: Text, line: int) -> list[Part]:
        """Render a row into parts that the loss counts and parts that it does not.

        Raises:
            BadRowError: the template refuses the row, or the row has the text of a special token in it.
            StageError: ModelInvalid, when the template can't be used to tell the parts apart.
        """
        match row:
            case Passage(text):
                return [Part(text, in_loss=True)]
            case Conversation() if self.chat_template:
                return self._chat(row, line)
            case Conversation(turns) if len(turns) == 2:
                return [Part(turns[0].content, in_loss=False), Part(turns[1].content, in_loss=True)]
        raise StageError(
            Reason.MODEL_INVALID,
            f"model.uri {self._base.uri}: its tokenizer has no chat template, which conversations need. Use an "
            "instruction-tuned model, add chat_template.jinja to its folder, or write rows as prompt and completion.",
        )

    def _chat(self, row: Conversation, line: int) -> list[Part]:
        parts: list[Part] = []
        done = ""
        for index, turn in enumerate(row.turns):
            if special := self._special_text.search(turn.content):
                raise BadRowError(
                    f'"messages[{index}].content" has the special token {special[0]} in it',
                    "Remove it: the chat template adds such tokens itself",
                )
            if turn.role != "assistant":
                continue
            asked = self._render(row, index, answer_next=True)
            answered = self._render(row, index + 1, answer_next=False)
            if not asked.startswith(done) or not answered.startswith(asked):
                raise self._template_rewrites_turns(line)
            answer = Part(answered[len(asked) :], in_loss=index >= row.context_turns)
            parts += [Part(asked[len(done) :], in_loss=False), answer]
            done = answered
        return parts

    def _render(self, row: Conversation, turns: int, *, answer_next: bool) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in row.turns[:turns]]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next)
        except TemplateError as error:
            raise BadRowError(
                f"the model's chat template refuses the row: {error}", "Write the turns as the template expects"
            ) from error
        return cast("str", text)

    def _template_rewrites_turns(self, line: int) -> StageError:
        return StageError(
            Reason.MODEL_INVALID,
            f"model.uri {self._base.uri}: its chat template rewrites earlier turns when a later one is added (seen at "
            f"line {line}), so the assistant's tokens can't be told from the rest. Use a template that only appends, "
            "or rows with a single assistant turn.",
        )

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # Special tokens such as BOS are the template's business.
        return cast("list[list[int]]", self._tokenizer(texts, add_special_tokens=False)["input_ids"])

    def _join(self, text: Text, parts: list[tuple[list[int], bool]], line: int) -> TokenRow:
        """Join the parts into one row and its loss mask. Each part that the loss counts gets an end-of-turn token."""
        templated = isinstance(text, Conversation) and bool(self.chat_template)
        ids: list[int] = []
        loss_mask: list[int] = []
        for tokens, in_loss in parts:
            if not in_loss:
                ended, count = tokens, 0
            elif isinstance(text, Passage):
                ended = self._followed_by_end(tokens, among=tokens[-1:])
                count = len(ended)
            else:
                ended = self._followed_by_end(tokens, among=tokens)
                count = self._until_end_of_turn(ended)
            ids += ended
            loss_mask += [1] * count + [0] * (len(ended) - count)
        if not templated and ids[:1] != self._beginning:
            ids, loss_mask = self._beginning + ids, [0] * len(self._beginning) + loss_mask
        loss_mask[0] = 0  # nothing predicts the first token
        if 1 not in loss_mask:
            raise BadRowError("there is no token to learn in this row", "Write a longer one")
        row = TokenRow(np.array(ids, np.int32), np.array(loss_mask, np.uint8), line)
        if templated:
            self._check_template(row)
        return row

    def _fit(self, rows: Sequence[TokenRow], findings: Findings) -> list[TokenRow]:
        """Apply training.overlongRows to a row, or to the two of a pair."""
        if len(rows) > 1:
            made = fit_pair(rows, self._longest, self._overlong)
        else:
            made = fit_row(rows[0], self._longest, self._overlong)
        if any(len(row.input_ids) > self._longest for row in rows):
            findings.overlong_rows += 1
        return made

    def _check_template(self, row: TokenRow) -> None:
        """Refuse a row that shows a mistake of the chat template.

        Raises:
            StageError: ModelInvalid: BOS is there twice, or a turn ends with a token at which serving does not stop.
        """
        invalid = f"model.uri {self._base.uri}: its chat template"
        if self._begin is not None and row.input_ids[:2].tolist() == [self._begin] * 2:
            raise StageError(
                Reason.MODEL_INVALID,
                f"{invalid} begins a conversation with {self._names([self._begin])} twice, where the model knows one. "
                "Remove the other from the template.",
            )
        ends = row.input_ids[(row.loss_mask == 1) & (np.append(row.loss_mask[1:], 0) == 0)]
        missed = sorted({*ends.tolist()} - self._stops)
        if missed:
            raise StageError(
                Reason.MODEL_INVALID,
                f"{invalid} ends the assistant's turn with {self._names(missed)}, but serving stops at "
                f"{self._names(sorted(self._stops)) or 'no token'}: an adapter would learn never to stop. Add "
                f"{', '.join(map(str, missed))} to eos_token_id in generation_config.json, or use the model's "
                "instruction-tuned version.",
            )

    def _names(self, tokens: Sequence[int]) -> str:
        names = cast("list[str | None]", self._tokenizer.convert_ids_to_tokens(tokens))
        return ", ".join(name or str(token) for token, name in zip(tokens, names, strict=True))

    def _followed_by_end(self, tokens: list[int], *, among: list[int]) -> list[int]:
        """The tokens, and EOS unless a special token is `among` these: without an end a model never learns to stop."""
        if np.isin(among, self._special_ids).any() or self._end is None:
            return tokens
        return [*tokens, self._end]

    def _until_end_of_turn(self, tokens: list[int]) -> int:
        """Count the tokens up to the last special one. The template adds what follows after the turn has ended."""
        specials = np.flatnonzero(np.isin(tokens, self._special_ids))
        return int(specials[-1]) + 1 if len(specials) else len(tokens)


def _load(base: BaseModel) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            Reason.MODEL_INVALID, f"model.uri {base.uri}: its tokenizer can't be read: {error}. Restore its files."
        ) from error
    # Without the added ones: Gemma 3's 1B has one too many, for the images of its larger siblings.
    if tokenizer.vocab_size > base.vocabulary > 0:
        raise StageError(
            Reason.MODEL_INVALID,
            f"model.uri {base.uri}: the tokenizer has {tokenizer.vocab_size} tokens, the model {base.vocabulary}. "
            "Restore the tokenizer that belongs to the model.",
        )
    return cast("PreTrainedTokenizerBase", tokenizer)
