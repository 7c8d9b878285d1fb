"""The tokenised rows in <work>/prepared/, which Prepare writes, and Train and Export read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from sluice_api.artifacts import MANIFEST
from sluice_api.dataset import DatasetFormat
from sluice_api.model import Model
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, PrepareResult
from sluice_trainer import durable
from sluice_trainer.errors import StageError
from sluice_trainer.token_rows import ReadFile, TokenRows, read_halves


class PreparedManifest(Model):
    """prepared/manifest.json: what the rows were made from, and Prepare's result."""

    format: Literal["sluice.prepared/v4"] = "sluice.prepared/v4"
    plan: str
    """plan.plan_digest of the StageSpec that they were made for."""
    result_plan: str = ""
    """plan.result_digest; empty in folders of versions that did not note what the rows were made from."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Digests of what the rows were made from, by what it is; none in folders of older versions."""
    files: dict[str, str]
    result: PrepareResult
    row_files: tuple[ReadFile, ...] = ()
    """What TokenRow.file counts."""
    row_format: DatasetFormat
    """Of the first source."""
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
class Prepared:
    """Everything that Prepare leaves."""

    manifest: PreparedManifest
    training: TokenRows
    validation: TokenRows


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
    return Prepared(manifest, *read_halves(folder, manifest.row_files))


def _unusable(folder: Path, why: str) -> StageError:
    return StageError(
        Reason.TRAINER_FAILED,
        f"The prepared rows in {folder} can't be used: {why}. Let Prepare make them anew: without a cluster, run the "
        "same command without --only; in a cluster, delete the job and create it again.",
        ExitCode.INTERNAL,
    )
