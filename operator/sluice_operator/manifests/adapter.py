"""The Adapter by which a job publishes what it has trained."""

from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import API_VERSION, JOB_LABEL
from sluice_api.publish import Publish
from sluice_api.stages import ExportResult
from sluice_operator.manifests.metadata import app_labels
from sluice_operator.writes import Manifest


def adapter(job: FineTuneJob, publish: Publish, export: ExportResult) -> Manifest:
    """The Adapter of a job's export. It has no owner: it survives the job."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Adapter",
        "metadata": {
            "name": publish.name,
            "namespace": job.metadata.namespace,
            "labels": {**app_labels("adapter", publish.name), JOB_LABEL: job.metadata.name},
        },
        "spec": {"engine": publish.engine, "source": {"uri": export.uri, "digest": export.digest}},
    }
