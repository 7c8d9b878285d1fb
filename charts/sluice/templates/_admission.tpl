{{/* The users that Sluice is, as a CEL list: the operator, and its stand-in before an uninstall. */}}
{{- define "sluice.accounts" -}}
{{- $name := print "system:serviceaccount:" .Release.Namespace ":" (include "sluice.name" .) -}}
{{- list $name (print $name "-give-back") | toJson -}}
{{- end -}}

{{/* The maps of labels and annotations of an object of any kind, and of the templates in it that a controller may copy
     into pods, Jobs or ResourceClaims. A CEL list; takes what the object is called in CEL. The n-th place of two objects
     is the same place. */}}
{{- define "sluice.keyMaps" -}}
{{- $maps := list -}}
{{- range list "" ".?spec.?template" ".?spec.?jobTemplate" ".?spec.?jobTemplate.?spec.?template" ".?template" ".?spec" -}}
{{- $maps = concat $maps (list (print $ . ".?metadata.?labels.orValue({})") (print $ . ".?metadata.?annotations.orValue({})")) -}}
{{- end -}}
[{{ join ", " $maps }}]
{{- end -}}

{{/* The specs of a pod, and of the templates in an object, in the same way. */}}
{{- define "sluice.podSpecs" -}}
{{- $specs := list -}}
{{- range list "" ".?spec.?template" ".?spec.?jobTemplate.?spec.?template" ".?template" -}}
{{- $specs = append $specs (print $ . ".?spec.orValue({})") -}}
{{- end -}}
[{{ join ", " $specs }}]
{{- end -}}
