"""The tokenised rows in <work>/prepared/, which Prepare writes, and Train and Export read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file, save_file

from sluice_api.artifacts import MANIFEST
from sluice_api.dataset import DatasetFormat
from sluice_api.model import Model
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, PrepareResult
from sluice_trainer import durable
from sluice_trainer.errors import StageError

TRAINING = "train.safetensors"
VALIDATION = "validation.safetensors"


class PreparedManifest(Model):
    """prepared/manifest.json: what the rows were made from, and Prepare's result."""

    format: Literal["sluice.prepared/v3"] = "sluice.prepared/v3"
    plan: str
    """plan.plan_digest of the StageSpec that they were made for."""
    result_plan: str = ""
    """plan.result_digest; empty in folders of versions that did not note what the rows were made from."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Digests of what the rows were made from, by what it is; none in folders of older versions."""
    files: dict[str, str]
    result: PrepareResult
    row_format: DatasetFormat
    chat_template: str
    base_model_uri: str
    base_model_revision: str
    """The commit that an hf:// model was at; empty for a folder in a volume."""
    base_model_fingerprint: str
    seed: int
    settings: dict[str, str] | None = None
    """plan.settings_of the StageSpec; None in folders of versions before resumeFrom."""

    @property
    def training_plan(self) -> str:
        """What checkpoints and exports carry, so that none is taken for the result of other settings or other rows."""
        return self.result_plan or self.plan


@dataclass(frozen=True)
class TokenRow:
    """One row: its tokens and their loss mask. A pair is both of its rows end to end."""

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.uint8]
    """1 for a token that the loss counts, 0 for one that the model only reads."""
    line: int = 0
    """Where it is in the dataset, counted from 1; 0 when it is not of the dataset."""
    split: int = 0
    """Where the rejected row of a pair begins; 0 when it is no pair."""

    @classmethod
    def pair(cls, chosen: "TokenRow", rejected: "TokenRow") -> "TokenRow":
        """Join two rows into a pair."""
        ids, mask = ((getattr(chosen, name), getattr(rejected, name)) for name in ("input_ids", "loss_mask"))
        return cls(np.concatenate(ids), np.concatenate(mask), chosen.line, len(chosen.input_ids))

    def answers(self) -> "tuple[TokenRow, TokenRow]":
        """Split a pair into its chosen and its rejected row."""
        return self.part(0, self.split), self.part(self.split, len(self.input_ids))

    def part(self, start: int, stop: int) -> "TokenRow":
        """Cut out some tokens as a row. The loss does not count the first one, which nothing predicts."""
        loss_mask = self.loss_mask[start:stop].copy()
        loss_mask[0] = 0
        return TokenRow(self.input_ids[start:stop], loss_mask, self.line)


@dataclass(frozen=True)
class TokenRows:
    """Rows laid end to end: row i is [offsets[i], offsets[i + 1])."""

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    lines: NDArray[np.int64]
    """The dataset's line of each row, counted from 1; the same for all parts of a row that was split."""
    splits: NDArray[np.int64]
    """Of each pair, where its rejected row begins; 0 of others."""

    @classmethod
    def of(cls, rows: Iterable[TokenRow]) -> "TokenRows":
        """Lay rows end to end."""
        rows = list(rows)
        return cls(
            np.concatenate([np.empty(0, np.int32), *(row.input_ids for row in rows)]),
            np.concatenate([np.empty(0, np.uint8), *(row.loss_mask for row in rows)]),
            np.cumsum([0, *(len(row.input_ids) for row in rows)], dtype=np.int64),
            np.array([row.line for row in rows], np.int64),
            np.array([row.split for row in rows], np.int64),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [int(length) for length in np.diff(self.offsets)]

    def sizes(self, indices: Sequence[int], *, packed: bool) -> list[int]:
        """Tokens that rows take in a micro-batch, with the padding between the two sides of a pair unless packed."""
        chosen = np.asarray(indices, np.int64)
        lengths, splits = self.offsets[chosen + 1] - self.offsets[chosen], self.splits[chosen]
        if not packed:
            lengths = np.where(splits > 0, 2 * np.maximum(splits, lengths - splits), lengths)
        return [int(size) for size in lengths]

    @property
    def size_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in vars(self).values())

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that the model sees."""
        return max(self.longest_sequences(range(len(self))))

    def longest_sequences(self, indices: Sequence[int]) -> list[int]:
        """Tokens of the longest sequence of each row: the two sides of a pair are two sequences."""
        chosen = np.asarray(indices, np.int64)
        lengths, splits = self.offsets[chosen + 1] - self.offsets[chosen], self.splits[chosen]
        return [int(length) for length in np.maximum(splits, lengths - splits)]

    def __getitem__(self, index: int) -> TokenRow:
        span = slice(self.offsets[index], self.offsets[index + 1])
        return TokenRow(self.input_ids[span], self.loss_mask[span], int(self.lines[index]), int(self.splits[index]))


@dataclass(frozen=True)
class Prepared:
    """Everything that Prepare leaves."""

    manifest: PreparedManifest
    training: TokenRows
    validation: TokenRows


def write_rows(folder: Path, training: TokenRows, validation: TokenRows) -> None:
    """Write training and held-out rows. The caller writes the manifest, last."""
    for name, rows in ((TRAINING, training), (VALIDATION, validation)):
        save_file(vars(rows), folder / name)


def finished(folder: Path) -> PreparedManifest | None:
    """The manifest of the prepared rows; None when there are none, or they are damaged."""
    manifest = durable.read_manifest(folder, PreparedManifest)
    return None if manifest is None or durable.damaged_file(folder, manifest.files) else manifest


def manifest_of(folder: Path, plan: str) -> PreparedManifest:
    """The manifest of the rows that were prepared for this plan. The rows themselves are not looked at.

    Raises:
        StageError: it is not there or not whole, or of another plan.
    """
    manifest = durable.read_manifest(folder, PreparedManifest)
    if manifest is None:
        raise _unusable(folder, f"{MANIFEST} is missing or damaged")
    if manifest.plan != plan:
        raise _unusable(folder, "they were made for other settings")
    return manifest


def load(folder: Path, plan: str) -> Prepared:
    """The rows prepared for this plan.

    Raises:
        StageError: they are not there or not whole, or of another plan.
    """
    manifest = manifest_of(folder, plan)
    if file := durable.damaged_file(folder, manifest.files):
        raise _unusable(folder, f"{file} is missing or damaged")
    training, validation = (TokenRows(**load_file(folder / name)) for name in (TRAINING, VALIDATION))
    return Prepared(manifest, training, validation)


def _unusable(folder: Path, why: str) -> StageError:
    return StageError(
        Reason.TRAINER_FAILED,
        f"The prepared rows in {folder} can't be used: {why}. Let Prepare make them anew: without a cluster, run the "
        "same command without --only; in a cluster, delete the job and create it again.",
        ExitCode.INTERNAL,
    )
