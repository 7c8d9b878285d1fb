"""The write of status.progress: server-side apply under a field manager of its own, which owns nothing else."""

from http import HTTPStatus
from typing import Any

from kubernetes.aio.client import ApiClient, ApiException, CustomObjectsApi

from sluice_api.finetunejob import FineTuneJob, Progress
from sluice_api.meta import API_VERSION, GROUP, PROGRESS_FIELD_MANAGER, VERSION
from sluice_operator import metrics

CALL_SECONDS = 10.0
TRIES = 3


class JobGone(Exception):
    """The job is not there any more, or another one has its name."""


class ProgressStatus:
    """Writes status.progress of exactly one job.

    An apply to /status does not compare metadata.uid (measured, Kubernetes 1.37): it would write a dead job's
    progress to its successor of the same name. So each write carries the resourceVersion at which the uid was seen.
    """

    def __init__(self, api: ApiClient) -> None:
        self._objects = CustomObjectsApi(api)

    async def write(self, job: FineTuneJob, progress: Progress) -> None:
        """Write the progress of a job.

        Raises:
            JobGone: there is no such job any more.
            ApiException: the API server refuses the write.
        """
        version = job.metadata.resource_version
        for tries_left in reversed(range(TRIES)):
            try:
                await self._apply(job, status_body(job, version, progress))
            except ApiException as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    raise JobGone from error
                if error.status != HTTPStatus.CONFLICT or not tries_left:
                    raise
            else:
                return
            version = await self._version_now(job)

    async def _apply(self, job: FineTuneJob, body: dict[str, Any]) -> None:
        result = "error"
        try:
            await self._objects.patch_namespaced_custom_object_status(
                *_place(job),
                body,
                field_manager=PROGRESS_FIELD_MANAGER,
                force=True,
                _content_type="application/apply-patch+yaml",
                _request_timeout=CALL_SECONDS,
            )
            result = "ok"
        finally:
            metrics.API_WRITES.labels("apply_progress", FineTuneJob.KIND.kind, result).inc()

    async def _version_now(self, job: FineTuneJob) -> str:
        """The job's newest resourceVersion, if it is still the same job."""
        try:
            found = await self._objects.get_namespaced_custom_object(*_place(job), _request_timeout=CALL_SECONDS)
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                raise JobGone from error
            raise
        if found["metadata"]["uid"] != job.metadata.uid:
            raise JobGone
        return str(found["metadata"]["resourceVersion"])


def _place(job: FineTuneJob) -> tuple[str, str, str, str, str]:
    return GROUP, VERSION, job.metadata.namespace, FineTuneJob.KIND.plural, job.metadata.name


def status_body(job: FineTuneJob, version: str, progress: Progress) -> dict[str, Any]:
    """What is applied: all fields of status.progress that are known, and no other of status."""
    metadata = job.metadata
    return {
        "apiVersion": API_VERSION,
        "kind": FineTuneJob.KIND.kind,
        "metadata": {"name": metadata.name, "namespace": metadata.namespace, "resourceVersion": version},
        "status": {"progress": progress.model_dump(mode="json", by_alias=True, exclude_none=True)},
    }
