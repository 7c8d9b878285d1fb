"""The chat template that a job gives to its model (model.chatTemplate)."""

from pathlib import Path, PurePosixPath

from sluice_api.finetunejob import ModelSource
from sluice_api.reasons import Reason
from sluice_api.sources import CONFIG_MAPS, VOLUMES, ConfigMapKey, VolumePath
from sluice_api.stages import ExitCode
from sluice_files.chat_templates import template_text
from sluice_files.errors import Failure, FileError
from sluice_trainer.errors import REASONS, StageError
from sluice_trainer.paths import mounted, mounted_config_map


def given_template(model: ModelSource) -> str | None:
    """The text of model.chatTemplate; None if the model's own template is used.

    Raises:
        StageError: ModelInvalid, or DownloadFailed or AccessRefused where another try may help.
    """
    if model.chat_template is None:
        return None
    try:
        return template_text(model.chat_template, model.credentials, _here)
    except FileError as error:
        again = error.failure in (Failure.UNREACHABLE, Failure.REFUSED)
        raise StageError(
            REASONS[error.failure] if again else Reason.MODEL_INVALID,
            error.in_field("model.chatTemplate.uri", "model.credentials"),
            ExitCode.INTERNAL if error.failure is Failure.UNREACHABLE else ExitCode.BAD_INPUT,
        ) from None


def _here(path: PurePosixPath) -> Path:
    """Where this process sees a path below VOLUMES or CONFIG_MAPS."""
    if path.is_relative_to(VOLUMES):
        claim, *rest = path.relative_to(VOLUMES).parts
        return mounted(VolumePath(claim, "/".join(rest)))
    name, *rest = path.relative_to(CONFIG_MAPS).parts
    return mounted_config_map(ConfigMapKey(name, "")).joinpath(*rest)
