"""The rows that a job learns from: where they are, how each says what to learn, and what is done to them first."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from sluice_api.data_steps import Step
from sluice_api.model import Decimal, Model, Remedy
from sluice_api.resource import Rule, bound, rules
from sluice_api.sources import Credentials, DatasetUri, shown


class DatasetFormat(StrEnum):
    """How a row of the dataset says what to learn."""

    AUTO = "Auto"
    MESSAGES = "Messages"
    SHARE_GPT = "ShareGPT"
    ALPACA = "Alpaca"
    PROMPT_COMPLETION = "PromptCompletion"
    TEXT = "Text"
    PREFERENCE = "Preference"
    TOKENS = "Tokens"


class FileFormat(StrEnum):
    """How a file holds rows."""

    AUTO = "Auto"
    JSONL = "JSONL"
    JSON = "JSON"
    CSV = "CSV"
    TSV = "TSV"
    PARQUET = "Parquet"
    ARROW = "Arrow"


class BadRow(StrEnum):
    """What happens to a row that cannot be trained on."""

    FAIL = "Fail"
    SKIP = "Skip"


FieldName = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class FieldNames(Model):
    """Which fields of a row hold what a format reads, where they have other names."""

    messages: FieldName | None = Field(None, description="Format Messages: the array of turns.")
    conversations: FieldName | None = Field(None, description="Format ShareGPT: the array of turns.")
    instruction: FieldName | None = Field(None, description="Format Alpaca: what is asked.")
    input: FieldName | None = Field(None, description="Format Alpaca: what the instruction is about.")
    output: FieldName | None = Field(None, description="Format Alpaca: the answer.")
    history: FieldName | None = Field(None, description="Format Alpaca: the questions and answers before.")
    system: FieldName | None = Field(None, description="The system prompt, in every format that has turns.")
    prompt: FieldName | None = Field(None, description="Formats PromptCompletion and Preference: what is asked.")
    completion: FieldName | None = Field(None, description="Format PromptCompletion: the answer.")
    text: FieldName | None = Field(None, description="Format Text: all of it is learnt.")
    chosen: FieldName | None = Field(None, description="Format Preference: the better answer.")
    rejected: FieldName | None = Field(None, description="Format Preference: the worse answer.")
    tools: FieldName | None = Field(None, description="The functions that the assistant may call.")


HubName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=128),
    Remedy("write the name of a configuration or a split of the dataset's repository, such as default or train"),
]


_NEEDS_URI = Rule("has(self.uri)", "write where the rows are", at=".uri")
_HUB_ONLY = Rule(
    "(!has(self.config) && !has(self.split)) || (has(self.uri) && self.uri.startsWith('hf://datasets/'))",
    "config and split belong to an hf://datasets/ address; leave them out, or name such a dataset",
    at=".config",
)


_ANY_NAME = " || ".join(f"has(self.fields.{name})" for name in FieldNames.model_fields)


class RowFiles(Model):
    """Files with rows, all of one kind."""

    uri: DatasetUri | None = Field(
        None,
        description="Where the rows are: pvc://claim/path, s3://bucket/path (gs:// and az:// too), https://host/path, "
        "hf://datasets/org/name@revision for a dataset of the hub or hf://org/name/path for one file of it, or "
        "configmap://name/key. * and ? name several files, which are read in the order of their names.",
    )
    credentials: Credentials | None = Field(None, description="What opens the address. Absent: nothing is needed.")
    file_format: FileFormat = Field(
        FileFormat.AUTO,
        description="How the files hold rows. Auto looks at their content: JSONL (one object a line), JSON (an array, "
        "or objects one after another), CSV and TSV with a header, Parquet, Arrow. Files may be packed with gzip or "
        "zstd.",
    )
    format: DatasetFormat = Field(
        DatasetFormat.AUTO,
        description="How a row says what to learn. Auto decides by the fields of the first row: messages; "
        "conversations (ShareGPT); instruction and output; prompt and completion; text; or chosen and rejected, with "
        "or without prompt, which teach a preference (DPO). Where a row fits several, name the one that is meant. "
        "Tokens: input_ids and labels (-100 is not learnt) of rows that were tokenised elsewhere for this model.",
    )
    fields: FieldNames = Field(
        default_factory=FieldNames,
        description="Which fields of a row hold what the format reads, where they have other names: {text: prompt}, "
        "or {instruction: question, output: answer}.",
    )
    config: HubName | None = Field(
        None, description="Configuration of a dataset of the hub. Absent: its only one, or default."
    )
    split: HubName | None = Field(None, description="Split of a dataset of the hub. Absent: train.")

    model_config = ConfigDict(json_schema_extra=rules(_NEEDS_URI, _HUB_ONLY))


class WeightedRowFiles(RowFiles):
    """Files with rows, and how often each row is learnt from."""

    weight: Decimal = Field(
        "1",
        description="How often each row is in one epoch: 2 is twice; 0.5 is half of the rows, chosen by the seed. At "
        "most 100.",
    )

    model_config = ConfigDict(
        json_schema_extra=rules(_NEEDS_URI, _HUB_ONLY, bound("weight", "<= 100.0", "must be at most 100, such as '2'"))
    )


class Dataset(RowFiles):
    """The rows to learn from."""

    sources: tuple[WeightedRowFiles, ...] = Field(
        (), max_length=16, description="Several files of different kinds or weights, instead of uri."
    )
    validation: RowFiles | None = Field(
        None,
        description="Rows that are held out, in files of their own. No other row is held out then. The same steps are "
        "done to them.",
    )
    validation_split: Annotated[
        str,
        StringConstraints(pattern=r"^([0-9]|[1-4][0-9])%$", max_length=3),
        Remedy("write a share from 0% to 49%, such as 10%"),
    ] = Field("10%", description="Share of the rows that is held out to measure the loss before and after.")
    on_bad_row: BadRow = Field(
        BadRow.FAIL,
        description="Fail: the job ends and names the row. Skip: the row is left out and counted.",
    )
    steps: tuple[Step, ...] = Field(
        (),
        max_length=8,
        description="What is done to each row before it becomes tokens, in this order. What each has changed or "
        "dropped is counted, with examples, in the report.",
    )

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "has(self.uri) != (has(self.sources) && self.sources.size() > 0)",
                "write dataset.uri, or dataset.sources for several; one of the two",
                at=".uri",
            ),
            Rule(
                "!has(self.sources) || self.sources.size() == 0 || (self.format == 'Auto' && self.fileFormat == 'Auto' "
                f"&& !(has(self.fields) && ({_ANY_NAME})))",
                "write format, fileFormat and fields into each of dataset.sources, which these say nothing of",
                at=".sources",
            ),
            _HUB_ONLY,
        )
    )

    @property
    def training_files(self) -> tuple[WeightedRowFiles, ...]:
        """The files to learn from, each kind with its weight."""
        if self.sources:
            return self.sources
        return (WeightedRowFiles(**{name: getattr(self, name) for name in RowFiles.model_fields}),)

    @property
    def files_by_field(self) -> dict[str, RowFiles]:
        """The files to learn from and those that are held out, by the field that has their address: dataset.uri."""
        fields = [f"dataset.sources[{index}].uri" for index in range(len(self.sources))] or ["dataset.uri"]
        held_out = {"dataset.validation.uri": self.validation} if self.validation else {}
        return {**dict(zip(fields, self.training_files, strict=True)), **held_out}

    @property
    def all_files(self) -> tuple[RowFiles, ...]:
        """The files to learn from, and those that are held out."""
        return tuple(self.files_by_field.values())

    @property
    def addresses(self) -> dict[str, str]:
        """Every address that is read, by the field that has it."""
        words = {
            f"dataset.steps[{index}].filter.wordsFrom": step.filter.words_from
            for index, step in enumerate(self.steps)
            if step.filter and step.filter.words_from
        }
        return {**{field: files.uri or "" for field, files in self.files_by_field.items()}, **words}

    @property
    def shown(self) -> tuple[str, ...]:
        """Every address that rows come from, as anybody may read it."""
        return tuple(shown(files.uri) for files in self.all_files if files.uri)
