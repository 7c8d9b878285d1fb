"""Which folder a job works in: work_folder.WorkFolder in a claim, or work_in_store.WorkInStore in an object store."""

from sluice_api import meta
from sluice_api.reasons import Reason
from sluice_api.sources import VolumePath, is_object, volume_path
from sluice_api.stages import StageSpec
from sluice_trainer.errors import StageError
from sluice_trainer.paths import mounted
from sluice_trainer.work_folder import WorkFolder


def work_of(stage: StageSpec, attempt: int | None = None) -> WorkFolder:
    """The folder of a stage's job. Nothing is asked or made yet.

    Args:
        stage: What is done.
        attempt: In whose name it is written, instead of the stage's own.

    Raises:
        StageError: the credentials of the output are missing or incomplete.
    """
    output = stage.spec.output.uri
    name = meta.work_folder(stage.name, stage.uid)
    uri = f"{output.rstrip('/')}/{name}"
    if is_object(output):
        from sluice_trainer.work_in_store import WorkInStore

        return WorkInStore(uri, stage, stage.attempt if attempt is None else attempt)
    path = volume_path(output)
    if path is None:
        raise StageError(Reason.OUTPUT_NOT_WRITABLE, f"output.uri {output} is no pvc:// and no s3:// address.")
    return WorkFolder(mounted(path) / name, uri, mounted(VolumePath(path.claim, "")))
