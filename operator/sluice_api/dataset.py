"""The rows that a job learns from: where they are, and how each says what to learn."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from sluice_api.model import Model, Remedy
from sluice_api.sources import DatasetUri


class DatasetFormat(StrEnum):
    """How a row of the dataset says what to learn."""

    AUTO = "Auto"
    MESSAGES = "Messages"
    SHARE_GPT = "ShareGPT"
    ALPACA = "Alpaca"
    PROMPT_COMPLETION = "PromptCompletion"
    TEXT = "Text"
    PREFERENCE = "Preference"


class BadRow(StrEnum):
    """What happens to a row that cannot be trained on."""

    FAIL = "Fail"
    SKIP = "Skip"


class Dataset(Model):
    """The rows to learn from."""

    uri: DatasetUri = Field(
        description="Where the rows are, one JSON object on each line (JSONL): pvc://claim/path, https://host/path or "
        "hf://org/name/path."
    )
    format: DatasetFormat = Field(
        DatasetFormat.AUTO,
        description="How a row says what to learn. Auto decides by the fields of the first row: messages; "
        "conversations (ShareGPT); instruction and output; prompt and completion; text; or chosen and rejected, with "
        "or without prompt, which teach a preference (DPO). Where a row fits several, name the one that is meant.",
    )
    validation_split: Annotated[
        str,
        StringConstraints(pattern=r"^([0-9]|[1-4][0-9])%$", max_length=3),
        Remedy("write a share from 0% to 49%, such as 10%"),
    ] = Field("10%", description="Share of the rows that is held out to measure the loss before and after.")
    on_bad_row: BadRow = Field(
        BadRow.FAIL,
        description="Fail: the job ends and names the line. Skip: the row is left out and counted.",
    )
