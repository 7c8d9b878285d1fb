"""An S3 server inside the cluster, as teams have MinIO or Ceph: versitygw in a pod, over a folder of the node."""

import secrets
import shutil
from pathlib import Path

from dev.cluster import binaries
from dev.cluster.provider import state_folder
from tests.e2e.kubectl import Kubectl, Object
from tests.e2e.stage import STORE
from tests.object_store import KEY, REGION, ObjectStore

PORT = 9000
"""Which dev/values.yaml opens to pods of jobs and engines, if the pod has the label NAME."""
NAME = "object-store"
IMAGE = "localhost/sluice-operator:dev"
"""Any: the program is static."""
STARTED = "120s"


def store_in_cluster(kubectl: Kubectl) -> ObjectStore:
    """Start it, with no bucket and a key that nobody else has; returns it once it listens."""
    folder = state_folder() / "volumes" / STORE
    shutil.rmtree(folder, ignore_errors=True)
    buckets = folder / "buckets"
    buckets.mkdir(parents=True)
    binaries.build_object_store()
    shutil.copy(binaries.OBJECT_STORE.path("versitygw"), folder)
    secret_key = f"canary-{secrets.token_hex(16)}"
    kubectl.apply(*_objects(folder, secret_key))
    kubectl("rollout", "status", f"deployment/{NAME}", f"--namespace={STORE}", f"--timeout={STARTED}")
    return ObjectStore(f"http://{NAME}.{STORE}:{PORT}", buckets, secret_key)


def _objects(folder: Path, secret_key: str) -> tuple[Object, ...]:
    labels = {"app.kubernetes.io/name": NAME}
    metadata = {"name": NAME, "namespace": STORE, "labels": labels}
    listens = ["--port", f":{PORT}", "--access", KEY, "--secret", secret_key, "--region", REGION, "--quiet"]
    container = {
        "name": "versitygw",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["/store/versitygw", *listens, "posix", "/store/buckets"],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
        "volumeMounts": [{"name": "store", "mountPath": "/store"}],
    }
    volume = {"name": "store", "hostPath": {"path": str(folder), "type": "Directory"}}
    pod = {
        "metadata": {"labels": labels},
        "spec": {"automountServiceAccountToken": False, "containers": [container], "volumes": [volume]},
    }
    deployment = {"selector": {"matchLabels": labels}, "template": pod}
    service = {"selector": labels, "ports": [{"port": PORT}]}
    return (
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": STORE}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": deployment},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
    )
