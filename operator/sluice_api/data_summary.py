"""FineTuneJob's status.data: what Prepare found, in short. All of it is in prepared/report.json (data_report.py)."""

from pydantic import Field, NonNegativeInt

from sluice_api.model import Model, Text


class Data(Model):
    """What Prepare found in the dataset."""

    rows: NonNegativeInt = Field(0, description="Rows to train on.")
    validation_rows: NonNegativeInt = Field(0, description="Rows held out.")
    refused_rows: NonNegativeInt = Field(0, description="Rows left out because of onBadRow: Skip.")
    overlong_rows: NonNegativeInt = Field(
        0, description="Rows of more than maxSequenceLength tokens: cut, split or left out, as overlongRows says."
    )
    dropped_rows: NonNegativeInt = Field(
        0, description="Rows left out by dataset.steps, or because of overlongRows: Drop."
    )
    duplicate_rows: NonNegativeInt = Field(
        0, description="Rows that are left and equal or nearly equal another one, held-out ones included."
    )
    conflicting_questions: NonNegativeInt = Field(
        0, description="Questions that have different answers in different rows."
    )
    tokens: NonNegativeInt = Field(0, description="Tokens of the training rows, one pass.")
    loss_tokens: NonNegativeInt = Field(
        0, description="Of these, the tokens that the loss counts: what the assistant says."
    )
    longest_row: NonNegativeInt = Field(0, description="Tokens of the longest row.")
    steps: NonNegativeInt = Field(0, description="Optimizer steps that training will take.")
    estimated_gpu_memory: Text = Field(
        "", description="Peak memory of one GPU in training, by a formula, as a quantity."
    )
    estimated_seconds: NonNegativeInt | None = Field(
        None,
        description="How long training will take, once it has its GPUs: the middle of a range, see report.json. "
        "Absent: the label nvidia.com/gpu.product of the pool's nodes names no known GPU.",
    )
    estimated_price: Text = Field(
        "", description="What that costs at the pool's pricePerGpuHour, as a decimal string. Empty: it has none."
    )
