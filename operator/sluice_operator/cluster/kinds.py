"""Where in the API is each kind of object?"""

from dataclasses import dataclass

from sluice_api.meta import GROUP, JOB_LABEL, SLOT_LABEL, VERSION
from sluice_operator.observe.views import Key


@dataclass(frozen=True, slots=True)
class ApiKind:
    """A kind as in the API server's paths."""

    group: str
    version: str
    plural: str
    namespaced: bool = True
    selector: str = ""
    """Label that the objects have which Sluice watches; empty for all. Lists and watches use the same."""

    @property
    def api_version(self) -> str:
        """The kind's apiVersion, as in a manifest."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def collection(self, namespace: str = "") -> str:
        """Path of all objects of the kind, or of those in a namespace."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        return f"{root}/namespaces/{namespace}/{self.plural}" if namespace else f"{root}/{self.plural}"


KINDS = {
    "FineTuneJob": ApiKind(GROUP, VERSION, "finetunejobs"),
    "InferenceEngine": ApiKind(GROUP, VERSION, "inferenceengines"),
    "Adapter": ApiKind(GROUP, VERSION, "adapters"),
    "GPUPool": ApiKind(GROUP, VERSION, "gpupools", namespaced=False),
    "Namespace": ApiKind("", "v1", "namespaces", namespaced=False),
    "Node": ApiKind("", "v1", "nodes", namespaced=False),
    "Pod": ApiKind("", "v1", "pods"),
    "Job": ApiKind("batch", "v1", "jobs", selector=JOB_LABEL),
    "ReplicaSet": ApiKind("apps", "v1", "replicasets"),
    "Deployment": ApiKind("apps", "v1", "deployments", selector=SLOT_LABEL),
    "PersistentVolumeClaim": ApiKind("", "v1", "persistentvolumeclaims"),
    "PersistentVolume": ApiKind("", "v1", "persistentvolumes", namespaced=False),
    "Service": ApiKind("", "v1", "services"),
    "ServiceAccount": ApiKind("", "v1", "serviceaccounts"),
    "Secret": ApiKind("", "v1", "secrets"),
    "ConfigMap": ApiKind("", "v1", "configmaps"),
    "Role": ApiKind("rbac.authorization.k8s.io", "v1", "roles"),
    "RoleBinding": ApiKind("rbac.authorization.k8s.io", "v1", "rolebindings"),
    "PodDisruptionBudget": ApiKind("policy", "v1", "poddisruptionbudgets"),
    "ResourceSlice": ApiKind("resource.k8s.io", "v1", "resourceslices", namespaced=False),
    "ResourceClaim": ApiKind("resource.k8s.io", "v1", "resourceclaims"),
    "ResourceClaimTemplate": ApiKind("resource.k8s.io", "v1", "resourceclaimtemplates"),
    "NetworkPolicy": ApiKind("networking.k8s.io", "v1", "networkpolicies"),
    "EndpointSlice": ApiKind("discovery.k8s.io", "v1", "endpointslices"),
    "Event": ApiKind("", "v1", "events"),
    "TokenReview": ApiKind("authentication.k8s.io", "v1", "tokenreviews", namespaced=False),
    "SubjectAccessReview": ApiKind("authorization.k8s.io", "v1", "subjectaccessreviews", namespaced=False),
    "Lease": ApiKind("coordination.k8s.io", "v1", "leases"),
}
"""Every kind that Sluice reads or writes, by its name in a manifest."""


def path_of(key: Key) -> str:
    """Path of one object."""
    return f"{KINDS[key.kind].collection(key.namespace)}/{key.name}"
