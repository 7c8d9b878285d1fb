"""Rows to tokens: rendered with the model's own chat template, with a loss only on what the assistant says.

Templates seldom mark the assistant's part (SmolLM2's does not), so it is found by rendering prefixes of the
conversation: what the template adds between "the assistant's turn begins" and "it has ended" is the assistant's.
Each part is tokenised by itself, so that the prompt has exactly the tokens that it has when the model serves.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np

from sluice_api.reasons import Reason
from sluice_api.training import OverlongRows
from sluice_trainer.base_model import BaseModel, stop_tokens
from sluice_trainer.data.overlong import fit_pair, fit_row
from sluice_trainer.data.render import Part, Renderer
from sluice_trainer.data.row import NOT_LEARNT, AnyRow, BadRowError, Pair, Passage, Tokens
from sluice_trainer.errors import StageError
from sluice_trainer.token_rows import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokenised:
    """What a row has become."""

    rows: tuple[TokenRow, ...]
    """One; several where it was split or a template shows it otherwise at each answer; none where it was dropped."""
    overlong: bool
    """Whether it had more than maxSequenceLength tokens, whatever overlongRows does with it."""


class Tokeniser:
    """A base model's tokenizer, and its chat template or a given one, for rows of at most `longest` tokens."""

    def __init__(self, base: BaseModel, longest: int, overlong: OverlongRows, template: str | None = None) -> None:
        self._base = base
        self._longest = longest
        self._overlong = overlong
        self._tokenizer = _load(base)
        specials = {str(token): index for index, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = np.array(sorted({*specials.values(), *self._tokenizer.all_special_ids}), np.int32)
        self._begin: int | None = self._tokenizer.bos_token_id
        self._end: int | None = self._tokenizer.eos_token_id
        self._stops = stop_tokens(base, self._end)
        stops = frozenset(text for text, index in specials.items() if index in self._stops)
        self._renderer = Renderer(base, self._tokenizer, frozenset(specials), stops, template)
        self._template_of = "its chat template" if template is None else "model.chatTemplate"
        first = self._tokenizer.convert_ids_to_tokens(self._tokenizer("x", add_special_tokens=False)["input_ids"])[:1]
        self._prepends_space = self._tokenizer.is_fast and str(*first).startswith("\u2581")
        """SentencePiece: a text by itself gets a space in front, which a part in the middle of a row does not have."""
        self._beginning: list[int] = [token for token in self._tokenizer("")["input_ids"] if token == self._begin]
        """Tokens that serving puts before a text without a template: BOS, for tokenizers that add it."""

    @property
    def chat_template(self) -> str:
        """The template that rows are rendered with; empty when the model has none."""
        return self._renderer.template

    @property
    def added_tokens(self) -> dict[int, str]:
        """The tokens that were added to the vocabulary, special ones among them, by their ids."""
        return {index: str(token) for index, token in self._tokenizer.added_tokens_decoder.items()}

    def parts(self, row: TokenRow) -> list[tuple[str, bool]]:
        """The text of a row in its parts, each with whether the loss counts it."""
        edges = [0, *(np.flatnonzero(np.diff(row.loss_mask)) + 1).tolist(), len(row.input_ids)]
        return [
            (cast("str", self._tokenizer.decode(row.input_ids[start:stop])), bool(row.loss_mask[start]))
            for start, stop in pairwise(edges)
        ]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token begins and ends that a text becomes as a row, in characters; its end token at the end.

        Raises:
            StageError: ModelInvalid: the tokenizer does not tell.
        """
        if not self._tokenizer.is_fast:
            raise StageError(
                Reason.MODEL_INVALID,
                f"model.uri {self._base.uri}: its tokenizer does not tell where its tokens are in a text, which the "
                "step chunk needs. Leave the step out, and set training.overlongRows: Split.",
            )
        found = self._tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        return [*found, (len(text), len(text))]

    def tokenise(self, rows: Sequence[AnyRow]) -> "list[Tokenised | BadRowError]":
        """Tokenise some rows: what becomes of each, in order.

        Raises:
            StageError: no row could be tokenised so: the chat template or the settings are wrong.
        """
        rendered = [self._rendered(row) for row in rows]
        texts = [parts for each in rendered if not isinstance(each, BadRowError) for parts in each]
        ids = iter(self._ids(texts))
        return [
            each if isinstance(each, BadRowError) else self._tokenised(row, each, ids)
            for row, each in zip(rows, rendered, strict=True)
        ]

    def _rendered(self, row: AnyRow) -> "list[list[Part]] | BadRowError":
        try:
            return [] if isinstance(row, Tokens) else self._renderer.parts(row)
        except BadRowError as error:
            return error

    def _tokenised(
        self, row: AnyRow, texts: Sequence[Sequence[Part]], ids: Iterator[list[int]]
    ) -> "Tokenised | BadRowError":
        tokens = [[(next(ids), part) for part in parts] for parts in texts]
        try:
            if isinstance(row, Tokens):
                joined = [self._given(row)]
            else:
                joined = [self._join(parts, is_passage=isinstance(row, Passage)) for parts in tokens]
            made = self._fit(joined, is_pair=isinstance(row, Pair))
        except BadRowError as error:
            return error
        return Tokenised(tuple(made), any(len(each.input_ids) > self._longest for each in joined))

    def _given(self, row: Tokens) -> TokenRow:
        """A row that was tokenised elsewhere."""
        ids = row.input_ids
        if ids.min() < 0 or ids.max() >= (self._base.vocabulary or len(self._tokenizer)):
            raise BadRowError(
                f'"input_ids" has {int(ids.max() if ids.min() >= 0 else ids.min())}, which is no token of the model',
                "Tokenise the rows with this model's tokenizer",
            )
        mask = row.labels != NOT_LEARNT
        mask[0] = False  # nothing predicts the first token
        if not mask.any():
            raise BadRowError("there is no token to learn in this row", f"Write labels other than {NOT_LEARNT}")
        return TokenRow(ids.astype(np.int32), mask.astype(np.uint8))

    def _ids(self, texts: Sequence[Sequence[Part]]) -> list[list[int]]:
        """The tokens of each part of each text, one after the other. Special tokens such as BOS are the template's."""
        if self._prepends_space:
            return [ids for parts in texts for ids in self._cut(parts)]
        parts = [part.text for each in texts for part in each]
        return cast("list[list[int]]", self._tokenizer(parts, add_special_tokens=False)["input_ids"] if parts else [])

    def _cut(self, parts: Sequence[Part]) -> list[list[int]]:
        """The tokens of a whole text, cut where its parts begin: by itself, a part would get a space in front.

        Where a token reaches over such an edge, a served prompt has others: then each part is tokenised by itself.
        """
        edges = np.cumsum([0, *(len(part.text) for part in parts)])
        text = "".join(part.text for part in parts)
        whole = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = np.array(whole["offset_mapping"], np.int64).reshape(-1, 2)
        places = np.searchsorted(edges, spans[:, 0], side="right")
        if (spans[:, 1] > edges[np.minimum(places, len(parts))]).any():
            return [self._tokenizer(part.text, add_special_tokens=False)["input_ids"] for part in parts]
        ids = np.array(whole["input_ids"], np.int64)
        return [ids[places == place].tolist() for place in range(1, len(parts) + 1)]

    def _join(self, parts: Sequence[tuple[list[int], Part]], *, is_passage: bool) -> TokenRow:
        """Join the parts into one row and its loss mask. Each part that the loss counts gets an end-of-turn token."""
        templated = not is_passage and bool(self.chat_template)
        ids: list[int] = []
        loss_mask: list[int] = []
        for tokens, part in parts:
            if not part.in_loss:
                ended, count = tokens, 0
            elif part.has_end:
                ended, count = tokens, self._until_end_of_turn(tokens)
            else:
                ended = self._followed_by_end(tokens)
                count = len(ended)
            ids += ended
            loss_mask += [1] * count + [0] * (len(ended) - count)
        if not templated and ids[:1] != self._beginning:
            ids, loss_mask = self._beginning + ids, [0] * len(self._beginning) + loss_mask
        loss_mask[0] = 0  # nothing predicts the first token
        if 1 not in loss_mask:
            raise BadRowError("there is no token to learn in this row", "Write a longer one")
        row = TokenRow(np.array(ids, np.int32), np.array(loss_mask, np.uint8))
        if templated:
            self._check_template(row)
        return row

    def _fit(self, rows: Sequence[TokenRow], *, is_pair: bool) -> list[TokenRow]:
        """Apply training.overlongRows to what a row has become, or to the two of a pair."""
        if is_pair:
            return fit_pair(rows, self._longest, self._overlong, self._base.rope_boundary)
        return [made for row in rows for made in fit_row(row, self._longest, self._overlong)]

    def _check_template(self, row: TokenRow) -> None:
        """Refuse a row that shows a mistake of the chat template.

        Raises:
            StageError: ModelInvalid: BOS is there twice, or a turn ends with a token at which serving does not stop.
        """
        invalid = f"model.uri {self._base.uri}: {self._template_of}"
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

    def _followed_by_end(self, tokens: list[int]) -> list[int]:
        """The tokens, and EOS unless they end with a special one: without an end a model never learns to stop."""
        if np.isin(tokens[-1:], self._special_ids).any():
            return tokens
        if self._end is None:
            raise StageError(
                Reason.MODEL_INVALID,
                f"model.uri {self._base.uri}: its tokenizer has no eos_token, with which an answer or a text ends: an "
                "adapter would learn never to stop. Set eos_token in its tokenizer_config.json.",
            )
        return [*tokens, self._end]

    def _until_end_of_turn(self, tokens: list[int]) -> int:
        """Count the tokens up to the first at which serving stops, or else up to the last special one.

        The template adds what follows after the turn has ended, and no answer that is served has it.
        """
        stop = next((index for index, token in enumerate(tokens) if token in self._stops), None)
        if stop is not None:
            return stop + 1
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
    _require_own_steps(base, tokenizer)
    # Without the added ones: Gemma 3's 1B has one too many, for the images of its larger siblings.
    if tokenizer.vocab_size > base.vocabulary > 0:
        raise StageError(
            Reason.MODEL_INVALID,
            f"model.uri {base.uri}: the tokenizer has {tokenizer.vocab_size} tokens, the model {base.vocabulary}. "
            "Restore the tokenizer that belongs to the model.",
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = _template_of_processor(base)
    return cast("PreTrainedTokenizerBase", tokenizer)


_SPACED = "a b\n  c"


def _require_own_steps(base: BaseModel, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a class of tokenizers that splits texts otherwise than tokenizer.json says, and loses spaces by it.

    LlamaTokenizer does so with the bytes of DeepSeek's: https://github.com/huggingface/transformers/issues/45488
    """
    from tokenizers import Tokenizer

    if not tokenizer.is_fast or not (base.folder / "tokenizer.json").is_file():
        return
    own = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    kept = own.decode(own.encode(_SPACED, add_special_tokens=False).ids)
    if kept == _SPACED and tokenizer.decode(tokenizer(_SPACED, add_special_tokens=False)["input_ids"]) != kept:
        raise StageError(
            Reason.MODEL_INVALID,
            f"model.uri {base.uri}: {type(tokenizer).__name__}, which its tokenizer_config.json names, loses spaces or "
            "line ends that its tokenizer.json keeps, here and when it serves. Set tokenizer_class to "
            "PreTrainedTokenizerFast there.",
        )


def _template_of_processor(base: BaseModel) -> str | None:
    """The chat template of a model for images and text, which its tokenizer does not read and vLLM does."""
    file = base.folder / "chat_template.json"
    try:
        template = json.loads(file.read_text(encoding="utf-8"))["chat_template"] if file.is_file() else None
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(
            Reason.MODEL_INVALID, f"model.uri {base.uri}: {file.name} is no object with a chat_template. Restore it."
        ) from error
    return template if isinstance(template, str) else None
