"""The write of status.progress: server-side apply under a field manager of its own, which owns nothing else."""

from collections.abc import Awaitable, Callable
from typing import Any

from kubernetes.aio.client import ApiClient, CustomObjectsApi

from sluice_api.finetunejob import FineTuneJob, Progress
from sluice_api.meta import API_VERSION, GROUP, PROGRESS_FIELD_MANAGER, VERSION
from sluice_operator import metrics

WRITE_SECONDS = 10.0


def status_patch(api: ApiClient) -> Callable[[FineTuneJob, Progress], Awaitable[None]]:
    """Applies the progress of exactly this job: another of its name has another uid, which is a conflict."""
    objects = CustomObjectsApi(api)

    async def patch(job: FineTuneJob, progress: Progress) -> None:
        metadata = job.metadata
        result = "error"
        try:
            await objects.patch_namespaced_custom_object_status(
                GROUP,
                VERSION,
                metadata.namespace,
                FineTuneJob.KIND.plural,
                metadata.name,
                status_body(job, progress),
                field_manager=PROGRESS_FIELD_MANAGER,
                force=True,
                _content_type="application/apply-patch+yaml",
                _request_timeout=WRITE_SECONDS,
            )
            result = "ok"
        finally:
            metrics.API_WRITES.labels("apply_progress", FineTuneJob.KIND.kind, result).inc()

    return patch


def status_body(job: FineTuneJob, progress: Progress) -> dict[str, Any]:
    """What is applied: all fields of status.progress that are known, and no other of status."""
    metadata = job.metadata
    return {
        "apiVersion": API_VERSION,
        "kind": FineTuneJob.KIND.kind,
        "metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
        "status": {"progress": progress.model_dump(mode="json", by_alias=True, exclude_none=True)},
    }
