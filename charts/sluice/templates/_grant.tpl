{{/* All that the operator's code may do, given to one account. Takes a dict:
       root         $
       account      a ServiceAccount in the release's namespace
       annotations  optional, for every role and binding */}}
{{- define "sluice.rights" -}}
{{- $namespace := .root.Release.Namespace -}}
{{- include "sluice.grant" (merge (dict "name" (print .account "-read") "rules" "sluice.rules.read") .) }}
{{- $write := merge (dict "name" (print .account "-write") "rules" "sluice.rules.write") . }}
{{- range .root.Values.watchNamespaces }}
{{- include "sluice.grant" (merge (dict "namespace" .) $write) }}
{{- else }}
{{- include "sluice.grant" $write }}
{{- end }}
{{- include "sluice.grant" (merge (dict "name" (print .account "-own") "rules" "sluice.rules.own" "namespace" $namespace) .) }}
{{- end -}}

{{/* One role with its binding: in `namespace`, or in the whole cluster where there is none. */}}
{{- define "sluice.grant" -}}
{{- $kind := ternary "Role" "ClusterRole" (hasKey . "namespace") }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}
metadata: {{- include "sluice.grant.metadata" . | nindent 2 }}
rules:
  {{- include .rules .root | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
metadata: {{- include "sluice.grant.metadata" . | nindent 2 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: {{ $kind }}, name: {{ .name }}}
subjects:
  - {kind: ServiceAccount, name: {{ .account }}, namespace: {{ .root.Release.Namespace }}}
{{- end -}}

{{- define "sluice.grant.metadata" -}}
name: {{ .name }}
{{- with .namespace }}
namespace: {{ . }}
{{- end }}
labels: {{- include "sluice.labels" .root | nindent 2 }}
{{- with .annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
