{{/* What the operator may do. No wildcard, no secret but the operator's own certificate. Each rule says what it is for; one that is not needed
     any more is removed. Objects of ours are watched by kopf (list, watch) and read anew before a write that
     depends on them (get). */}}

{{/* Read in the whole cluster, whatever watchNamespaces says: half a view would hand out GPUs twice. */}}
{{- define "sluice.rules.read" -}}
# GPUs are counted by nodes, and by every pod that is bound to one, whoever made it.
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# Whom a pool or an engine is open to: by the labels of namespaces.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [list, watch]
# Training Jobs are the claims on GPUs; Deployments are the replicas of engines.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch]
# A job must not wait for a GPU on a node that its volumes can't be mounted on.
- apiGroups: [""]
  resources: [persistentvolumeclaims, persistentvolumes]
  verbs: [list, watch]
# A replica is lent only as far as disruption budgets let it go.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch]
# GPUs that DRA serves, instead of a device plugin: what drivers offer on nodes, and who has it. `get`: the
# ResourceClaims of replicas are ours.
- apiGroups: [resource.k8s.io]
  resources: [resourceslices]
  verbs: [list, watch]
- apiGroups: [resource.k8s.io]
  resources: [resourceclaims]
  verbs: [get, list, watch]
# Where engines' agents reach the API server, for their NetworkPolicies.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  resourceNames: [kubernetes]
  verbs: [get]
# What to do. `get` is also what the operator grants to the agents of engines: one can grant only what one has.
- apiGroups: [sluice.dev]
  resources: [adapters, finetunejobs, gpupools, inferenceengines]
  verbs: [get, list, watch]
# Who has the GPUs of a pool; pools are cluster-scoped.
- apiGroups: [sluice.dev]
  resources: [gpupools/status]
  verbs: [patch]
# Whose token a report carries, and whose an engine's pod is: pod, ReplicaSet, Deployment, InferenceEngine.
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get]
# Whether whoever asks for the metrics may have them.
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
{{- end -}}

{{/* The ConfigMap with the authority's certificate. A name can't limit `create`. */}}
{{- define "sluice.rules.trust" -}}
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create]
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [sluice-progress-ca]
  verbs: [get, patch]
{{- end -}}

{{/* Written where custom resources are served: everywhere, or in each of watchNamespaces.
     A server-side apply that makes an object needs both create and patch. */}}
{{- define "sluice.rules.write" -}}
# Stages run as Jobs, which are made once and never changed. Deleting a training Job ends its claim.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [create, delete]
# Each replica of an engine is a Deployment of size 0 or 1.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [create, patch, delete]
# Where DRA serves GPUs, a replica has its own by a ResourceClaim, and a training pod by one from a template.
- apiGroups: [resource.k8s.io]
  resources: [resourceclaims]
  verbs: [create, delete]
- apiGroups: [resource.k8s.io]
  resources: [resourceclaimtemplates]
  verbs: [create, get]
# The engine's address, and the identity and the rights of its agents. `get`: one that is there and is not Sluice's is
# never changed.
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [create, get, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [create, get, patch]
# Who may reach the pods of an engine or a job, and what they may reach; gone when networkPolicy.workloads is false.
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [create, get, patch, delete]
# What pods must trust to know the operator when they report to it.
{{ include "sluice.rules.trust" . }}
# Binding a claim: the gate comes off and the node selector goes on, in one patch.
- apiGroups: [""]
  resources: [pods]
  verbs: [patch]
# Placeholders: pods that never run and keep a lent replica's GPUs from others' pods. And the pods by which jobs with
# scaleUpFirst ask a cluster autoscaler for nodes.
- apiGroups: [""]
  resources: [pods]
  verbs: [create, delete]
# Binding a claim, and keeping a lent GPU: the nominated node.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
# The record of ended attempts, as an annotation that survives a lost status; and the end of a job's time to live.
- apiGroups: [sluice.dev]
  resources: [finetunejobs]
  verbs: [patch, delete]
# A job with `publish` writes an Adapter.
- apiGroups: [sluice.dev]
  resources: [adapters]
  verbs: [create, patch]
- apiGroups: [sluice.dev]
  resources: [adapters/status, finetunejobs/status, inferenceengines/status]
  verbs: [patch]
# Children name their owner so that it is deleted after them; where OwnerReferencesPermissionEnforcement is on
# (OpenShift), that takes this right.
- apiGroups: [sluice.dev]
  resources: [finetunejobs/finalizers, inferenceengines/finalizers]
  verbs: [update]
# What happened, for `kubectl describe`, where what repeats is counted; and why a Job could not make its pod, which only
# an event says.
- apiGroups: [""]
  resources: [events]
  verbs: [create, list, patch]
{{- end -}}

{{/* In the operator's own namespace only. */}}
{{- define "sluice.rules.own" -}}
# Which replica leads. A name can't limit `create`.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [sluice-operator]
  verbs: [get, update]
# The certificate of the operator, which it makes and renews. A name can't limit `create`.
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [sluice-progress-tls]
  verbs: [get, update]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
# What Prometheus and `helm test` must trust.
{{ include "sluice.rules.trust" . }}
# The leader's label, by which the progress Service finds it.
- apiGroups: [""]
  resources: [pods]
  verbs: [patch]
{{- end -}}

{{/* Of `helm test`: to try, without storing it, an object that runs nothing and that the admission policy must refuse. */}}
{{- define "sluice.rules.test" -}}
- apiGroups: [""]
  resources: [podtemplates]
  verbs: [create]
{{- end -}}
