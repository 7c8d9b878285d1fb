{{/* The names, labels, images and security settings that several templates share. */}}

{{- define "sluice.name" -}}
{{- if contains "sluice" .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-sluice" .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "sluice.selector" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sluice.labels" -}}
{{ include "sluice.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sluice
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "sluice.operatorSelector" -}}
{{ include "sluice.selector" . }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Takes (list $ "operator"): the image's full name. */}}
{{- define "sluice.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.images (index . 1) -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Every pod of the chart passes the Pod Security Standard "restricted". */}}
{{- define "sluice.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "sluice.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "sluice.reportURL" -}}
{{ ternary "http" "https" (eq .Values.tls.issuer "None") }}://sluice-progress.{{ .Release.Namespace }}.svc:8080
{{- end -}}

{{/* Scheme of the metrics port, which has the probes too. */}}
{{- define "sluice.metricsScheme" -}}
{{ ternary "HTTP" "HTTPS" (eq .Values.tls.issuer "None") }}
{{- end -}}

{{/* The operator's configuration: settings.py reads every one of these. */}}
{{- define "sluice.env" -}}
- name: SLUICE_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: SLUICE_POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: SLUICE_REPORT_URL
  value: {{ include "sluice.reportURL" . }}
- name: SLUICE_CERTIFICATE_ISSUER
  value: {{ ternary "CertManager" "Sluice" (eq .Values.tls.issuer "CertManager") }}
- name: SLUICE_METRICS_ACCESS
  value: {{ .Values.metrics.access }}
- name: SLUICE_TRAINER_IMAGE
  value: {{ include "sluice.image" (list . "trainer") }}
- name: SLUICE_SERVER_IMAGE
  value: {{ include "sluice.image" (list . "server") }}
- name: SLUICE_IMAGE_PULL_POLICY
  value: {{ .Values.images.pullPolicy }}
- name: SLUICE_IMAGE_PULL_SECRETS
  value: {{ join "," .Values.images.workloadPullSecrets | quote }}
- name: SLUICE_NETWORK
  value: {{ omit .Values.networkPolicy "create" | toJson | quote }}
- name: SLUICE_DEVICE
  value: {{ .Values.device }}
- name: SLUICE_WATCH_NAMESPACES
  value: {{ join "," .Values.watchNamespaces | quote }}
- name: SLUICE_TRAINING_PRIORITY_CLASS
  value: {{ .Values.priorityClasses.training.name }}
- name: SLUICE_INFERENCE_PRIORITY_CLASS
  value: {{ .Values.priorityClasses.inference.name }}
- name: SLUICE_PLACEHOLDER_PRIORITY_CLASS
  value: {{ .Values.priorityClasses.placeholder.name }}
- name: SLUICE_STAGE_START_DEADLINE_SECONDS
  value: {{ .Values.timing.stageStartDeadlineSeconds | quote }}
- name: SLUICE_BIND_DEADLINE_SECONDS
  value: {{ .Values.timing.bindDeadlineSeconds | quote }}
- name: SLUICE_STALLED_AFTER_SECONDS
  value: {{ .Values.timing.stalledAfterSeconds | quote }}
- name: SLUICE_UNREACHABLE_SECONDS
  value: {{ .Values.timing.unreachableSeconds | quote }}
- name: SLUICE_GIVE_BACK_SECONDS
  value: {{ .Values.uninstall.deadlineSeconds | quote }}
- name: SLUICE_LEASE_SECONDS
  value: {{ .Values.timing.leaseSeconds | quote }}
- name: SLUICE_RESYNC_SECONDS
  value: {{ .Values.timing.resyncSeconds | quote }}
- name: SLUICE_WORKERS
  value: {{ .Values.workers | quote }}
- name: SLUICE_PROGRESS_PORT
  value: "8080"
- name: SLUICE_METRICS_PORT
  value: "9090"
{{- end -}}
