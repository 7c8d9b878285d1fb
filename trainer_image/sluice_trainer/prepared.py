"""The tokenised rows in <work>/prepared/, which Prepare writes, and Train and Export read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from sluice_api.artifacts import MANIFEST
from sluice_api.dataset import DatasetFormat
from sluice_api.model import Model
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, PrepareResult, StageSpec
from sluice_trainer import durable
from sluice_trainer.errors import StageError
from sluice_trainer.plan import plan_digest
from sluice_trainer.token_rows import ReadFile, TokenRows, read_halves


class PreparedManifest(Model):
    """prepared/manifest.json: what the rows were made from, and Prepare's result."""

    format: Literal["sluice.prepared/v5"] = "sluice.prepared/v5"
    plan: str
    """plan.plan_digest: checkpoints and exports carry it, so that none is taken for the result of other settings or
    other rows."""
    inputs: dict[str, str]
    """Digests of what the rows were made from, by what it is."""
    files: dict[str, str]
    result: PrepareResult
    row_files: tuple[ReadFile, ...] = ()
    """What TokenRow.file counts."""
    row_format: DatasetFormat
    """Of the first source that has rows."""
    chat_template: str
    base_model_uri: str
    base_model_revision: str
    """The commit that an hf:// model was at; empty for a folder in a volume."""
    base_model_fingerprint: str
    seed: int
    settings: dict[str, str]
    """plan.settings_of the StageSpec."""


class AnyManifest(Model):
    """The manifest of prepared rows, whatever version has written it."""

    model_config = ConfigDict(extra="ignore")

    format: str

    @property
    def foreign(self) -> str:
        """Whose it is, if this version can't read it; else empty."""
        mine = PreparedManifest.model_fields["format"].default
        if self.format == mine:
            return ""
        return f"another version of Sluice prepared them ({self.format}; this one reads {mine})"


@dataclass(frozen=True)
class Prepared:
    """Everything that Prepare leaves."""

    manifest: PreparedManifest
    training: TokenRows
    validation: TokenRows


def finished(folder: Path) -> PreparedManifest | None:
    """The manifest of the prepared rows; None when there are none, or they are damaged."""
    manifest = durable.read_manifest(folder, PreparedManifest)
    return None if manifest is None or durable.damaged_file(folder, manifest.files) else manifest


def foreign(folder: Path) -> str:
    """Which other version has prepared the rows; empty if none has, or there are no rows."""
    manifest = durable.read_manifest(folder, AnyManifest)
    return manifest.foreign if manifest else ""


def manifest_of(folder: Path, stage: StageSpec) -> PreparedManifest:
    """The manifest of the rows that were prepared for a stage's job. The rows themselves are not looked at.

    Raises:
        StageError: it is not there or not whole, or of another version or other settings.
    """
    manifest = durable.read_manifest(folder, PreparedManifest)
    if manifest is None:
        raise _unusable(folder, foreign(folder) or f"{MANIFEST} is missing or damaged")
    if manifest.plan != plan_digest(stage, manifest.inputs):
        raise _unusable(folder, "they were made for other settings")
    return manifest


def load(folder: Path, stage: StageSpec) -> Prepared:
    """The rows prepared for a stage's job.

    Raises:
        StageError: they are not there or not whole, or of another version or other settings.
    """
    manifest = manifest_of(folder, stage)
    if file := durable.damaged_file(folder, manifest.files):
        raise _unusable(folder, f"{file} is missing or damaged")
    return Prepared(manifest, *read_halves(folder, manifest.row_files))


def _unusable(folder: Path, why: str) -> StageError:
    return StageError(
        Reason.TRAINER_FAILED,
        f"The prepared rows in {folder} can't be used: {why}. Let Prepare make them anew: without a cluster, run the "
        "same command without --only; in a cluster, delete the job and create it again.",
        ExitCode.INTERNAL,
    )
