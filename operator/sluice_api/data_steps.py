"""dataset.steps: what can be done to rows before they become tokens. Each item of the list has one of these fields."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from sluice_api.model import Decimal, Model, Remedy
from sluice_api.resource import Rule, bound, rules
from sluice_api.sources import FileUri


def _share(field: str) -> Rule:
    """The rule that a Decimal field is a share, from 0 to 1."""
    return bound(field, "<= 1.0", "must be at most 1, such as '0.8'")


class Clean(Model):
    """Makes texts regular. It changes rows and drops none."""

    unicode: Literal["NFC", "NFKC", "Keep"] = Field(
        "NFC",
        description="Unicode form of all texts. NFC writes each character one way. NFKC also writes look-alikes "
        "plainly: ligatures, full-width letters, circled numbers. Keep changes nothing.",
    )
    control_characters: Literal["Remove", "Keep"] = Field(
        "Remove",
        description="Control characters but tab and line feed, zero-width characters and byte order marks. Carriage "
        "returns and form feeds become line feeds. Joiners stay in emoji and where Persian, Hindi, ... write them.",
    )
    whitespace: Literal["Trim", "Collapse", "Keep"] = Field(
        "Trim",
        description="Trim removes it at the beginning and end of a text and at the ends of lines, and leaves at most "
        "one empty line in a row. Collapse also makes one space of several, but not of those a line begins with.",
    )
    markup: Literal["Keep", "Remove"] = Field(
        "Keep",
        description="Remove takes HTML tags, comments, scripts and styles out, and writes entities as characters. "
        "Code in ``` fences and in single backticks stays as it is.",
    )


Word = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Language = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z]{2,3}$", max_length=3),
    Remedy("write a language by its code of ISO 639, such as en, de or zh"),
]


class Filter(Model):
    """Drops rows. What is absent drops none."""

    min_characters: int | None = Field(None, ge=1, le=10_000_000, description="Of all texts of a row together.")
    max_characters: int | None = Field(None, ge=1, le=10_000_000, description="Of all texts of a row together.")
    languages: tuple[Language, ...] = Field(
        (),
        max_length=32,
        description="Languages that stay. A row whose language is not clear stays.",
    )
    max_repetition: Decimal | None = Field(
        None,
        description="Largest share of a text's words that may be in runs of three that it has already had, such as "
        "'0.3'. Texts of fewer than 20 words are not looked at.",
    )
    empty_answers: Literal["Drop", "Keep"] = Field(
        "Keep", description="Rows with an answer that says nothing. Keep: they are bad rows, for dataset.onBadRow."
    )
    refusals: Literal["Drop", "Keep"] = Field(
        "Keep", description="Rows whose last answer begins as a refusal does, such as: I'm sorry, but I can't ..."
    )
    words: tuple[Word, ...] = Field(
        (), max_length=32, description="Rows that have one of these words or phrases are dropped, in either case."
    )
    words_from: FileUri | None = Field(None, description="A file with more such words, one on each line.")
    max_toxicity: Decimal | None = Field(
        None,
        description="Rows are dropped that the built-in model of offensive language (English) finds likelier than "
        "this to offend, such as '0.9'.",
    )

    model_config = ConfigDict(
        json_schema_extra=rules(
            _share("maxRepetition"),
            _share("maxToxicity"),
            Rule(
                "!has(self.minCharacters) || !has(self.maxCharacters) || self.minCharacters <= self.maxCharacters",
                "must not be more than maxCharacters",
                at=".minCharacters",
            ),
        )
    )


class Deduplicate(Model):
    """Drops rows that were there before. The first stays."""

    near: Decimal | None = Field(
        None,
        description="Also drop rows that share this much of their runs of five words (Jaccard, estimated by MinHash), "
        "such as '0.8'. Absent: only rows that say the same, but for case, punctuation and white space.",
    )

    model_config = ConfigDict(
        json_schema_extra=rules(_share("near"), bound("near", ">= 0.6", "must be at least 0.6, such as '0.8'"))
    )


class Secretive(StrEnum):
    """What can be redacted."""

    EMAIL = "Email"
    PHONE = "Phone"
    CARD = "Card"
    KEY = "Key"


class Redact(Model):
    """Puts a placeholder in the place of what looks personal or secret. It changes rows and drops none."""

    kinds: tuple[Secretive, ...] = Field(
        tuple(Secretive),
        min_length=1,
        max_length=len(Secretive),
        description="Email: addresses. Phone: telephone numbers with a country code or of a usual grouping. Card: "
        "numbers of payment cards whose check digit is right. Key: shapes of API keys, tokens and private keys.",
    )
    placeholder: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        "[{kind}]", description="What is written instead; {kind} becomes EMAIL, PHONE, CARD or KEY."
    )


class Chunk(Model):
    """Cuts rows of format Text into several, at the ends of sentences where it can. Other rows stay as they are."""

    tokens: int = Field(512, ge=16, le=131_072, description="Longest row in tokens of the model.")
    overlap: int = Field(0, ge=0, le=65_536, description="Tokens at the end of each row that the next begins with.")

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.overlap) || !has(self.tokens) || self.overlap * 2 <= self.tokens",
                "must be at most half of tokens",
                at=".overlap",
            )
        )
    )


class Step(Model):
    """One step: exactly one of these fields."""

    clean: Clean | None = Field(None, description="Makes texts regular.")
    filter: Filter | None = Field(None, description="Drops rows by what they say.")
    deduplicate: Deduplicate | None = Field(None, description="Drops rows that were there before.")
    redact: Redact | None = Field(None, description="Puts placeholders where something personal or secret is.")
    chunk: Chunk | None = Field(None, description="Cuts long texts into several rows.")

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "[has(self.clean), has(self.filter), has(self.deduplicate), has(self.redact), has(self.chunk)]"
                ".filter(x, x).size() == 1",
                "write one of clean, filter, deduplicate, redact and chunk in each item; {} means its defaults",
            )
        )
    )
