{{/* Where everything goes that has a namespace. */}}
{{- define "holdfast.namespace" -}}
{{- .Values.namespace.name | default .Release.Namespace -}}
{{- end }}

{{/* An image: `include "holdfast.image" (list $ .Values.image.daemon)`. A digest goes before a tag. */}}
{{- define "holdfast.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Labels of an object: `include "holdfast.labels" (list $ "holdfast-daemon")`; an empty name: of no program's. */}}
{{- define "holdfast.labels" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $labels := dict "app.kubernetes.io/part-of" "holdfast" -}}
{{- if $name }}{{- $_ := set $labels "app.kubernetes.io/name" $name }}{{- end -}}
{{- toYaml (merge $labels $root.Values.commonLabels) -}}
{{- end }}

{{/* `labels:` with the labels of all objects alone, for those that have no other. */}}
{{- define "holdfast.commonLabels" -}}
{{- with .Values.commonLabels }}
labels:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Labels and annotations of pods: `include "holdfast.podLabels" (list $ "holdfast-daemon" .Values.daemon)`. */}}
{{- define "holdfast.podLabels" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $part := index . 2 -}}
{{- $labels := dict "app.kubernetes.io/part-of" "holdfast" "app.kubernetes.io/name" $name -}}
{{- if and (eq $name "holdfast-daemon") $root.Values.identity.azure.clientId -}}
{{- $_ := set $labels "azure.workload.identity/use" "true" -}}
{{- end -}}
{{- toYaml (merge $labels $part.podLabels) -}}
{{- end }}

{{/* The value as a program reads it: YAML makes `off` false, and numbers are floating-point ones here, so that 1000000 would
     be printed as 1e+06. */}}
{{- define "holdfast.text" -}}
{{- if kindIs "bool" . -}}
{{ ternary "on" "off" . }}
{{- else if kindIs "float64" . -}}
{{- if eq . (floor .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- else -}}
{{ . }}
{{- end -}}
{{- end }}

{{/* Variables of a program from its options: `quota: 2TB` is HOLDFAST_QUOTA. */}}
{{- define "holdfast.options" -}}
{{- range $name, $value := . }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- name: HOLDFAST_{{ $name | snakecase | upper }}
  value: {{ include "holdfast.text" $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Host and port to listen on. */}}
{{- define "holdfast.listen" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.listenHost "::" }}[::]{{ else }}{{ $root.Values.listenHost }}{{ end }}:{{ index . 1 }}
{{- end }}

{{/* Whose pods are not looked at: a webhook that guards its own namespace cannot start. */}}
{{- define "holdfast.namespaceSelector" -}}
matchExpressions:
  - {key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system, {{ include "holdfast.namespace" . }}]}
{{- end }}

{{/* What of the pods is asked about: not those without the annotations. */}}
{{- define "holdfast.matchConditions" -}}
- name: asks-for-weights
  expression: |-
    has(object.metadata.annotations)
    && ('holdfast.dev/model' in object.metadata.annotations || 'holdfast.dev/models' in object.metadata.annotations)
- name: not-a-static-pod
  expression: "!('kubernetes.io/config.mirror' in object.metadata.annotations)"
{{- end }}

{{- define "holdfast.catalogName" -}}
{{- .Values.catalog.existingConfigMap | default "holdfast-catalog" -}}
{{- end }}

{{/* The Secret with the key of the daemons' pool. */}}
{{- define "holdfast.peerSecret" -}}
{{- .Values.peers.existingSecret | default "holdfast-peers" -}}
{{- end }}

{{/* Not empty where the injector makes that key: it writes nothing with cert-manager, and is not there with the policy. */}}
{{- define "holdfast.makesPeerKey" -}}
{{- $v := .Values -}}
{{- if and $v.peers.enabled (not $v.peers.existingSecret) (eq $v.admission "webhook") (not $v.injector.certManager.enabled) -}}
true
{{- end -}}
{{- end }}

{{/* Values that are good each for itself and not together, and a namespace that forbids the daemon. */}}
{{- define "holdfast.check" -}}
{{- $v := .Values -}}
{{- if and $v.namespace.create (or (not $v.namespace.name) (eq $v.namespace.name .Release.Namespace)) -}}
{{- fail (printf "namespace.create: expected namespace.name to be another namespace than the release's own (%s), which must be there before: name another, or leave namespace.create out and use --create-namespace" .Release.Namespace) -}}
{{- end -}}
{{- $given := list -}}
{{- if $v.catalog.existingConfigMap }}{{ $given = append $given "catalog.existingConfigMap" }}{{ end -}}
{{- if $v.catalog.text }}{{ $given = append $given "catalog.text" }}{{ end -}}
{{- if or $v.catalog.models $v.catalog.defaults }}{{ $given = append $given "catalog.models and catalog.defaults" }}{{ end -}}
{{- if gt (len $given) 1 -}}
{{- fail (printf "catalog: expected one place that it comes from, found %s: keep one of them" (join ", " $given)) -}}
{{- end -}}
{{- if and (has $v.mode (list "csi" "auto")) (not $v.csi.enabled) -}}
{{- fail (printf "mode: %s needs the CSI driver: set csi.enabled: true, or mode: gate" $v.mode) -}}
{{- end -}}
{{- if eq $v.admission "policy" -}}
{{- if semverCompare "<1.36.0-0" .Capabilities.KubeVersion.Version -}}
{{- fail (printf "admission: policy needs Kubernetes 1.36 or later, found %s: use admission: webhook" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if $v.mode -}}
{{- fail (printf "mode: %s is an option of the injector, which admission: policy has not: pods say holdfast.dev/mode; leave mode empty" $v.mode) -}}
{{- end -}}
{{- if $v.injector.certManager.enabled -}}
{{- fail "injector.certManager.enabled: admission: policy has no certificate: leave it out, or use admission: webhook" -}}
{{- end -}}
{{- with $v.injector.options -}}
{{- fail (printf "injector.options: admission: policy has no injector, and these options would do nothing: %s; leave them out, or use admission: webhook" (keys . | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- if and $v.injector.certManager.enabled (eq $v.mode "auto") -}}
{{- fail "mode: auto asks the API for nodes with the CSI driver, and with injector.certManager.enabled the injector has no token: set mode: csi or mode: gate" -}}
{{- end -}}
{{- if and $v.csi.enabled (eq $v.mode "") $v.injector.certManager.enabled -}}
{{- fail "mode: with csi.enabled and injector.certManager.enabled the injector has no token to find nodes with the driver: set mode: csi or mode: gate" -}}
{{- end -}}
{{- $namespace := include "holdfast.namespace" . -}}
{{- if not $v.namespace.create -}}
{{- $found := lookup "v1" "Namespace" "" $namespace | default dict -}}
{{- $level := dig "metadata" "labels" "pod-security.kubernetes.io/enforce" "" $found -}}
{{- if has $level (list "baseline" "restricted") -}}
{{- fail (printf "the namespace %s enforces Pod Security %q, which forbids the daemon's folder of the node: kubectl label namespace %s pod-security.kubernetes.io/enforce=privileged --overwrite, or use another namespace" $namespace $level $namespace) -}}
{{- end -}}
{{- end -}}
{{- end }}
