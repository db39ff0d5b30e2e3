{{/* Name of the chart, shortened to what a label takes. */}}
{{- define "tunery.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name that every object of the release starts with. */}}
{{- define "tunery.fullname" -}}
{{- $name := include "tunery.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the operator's pod. */}}
{{- define "tunery.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tunery.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Labels of every object. managed-by is Helm's: the operator watches its own children by managed-by=tunery. */}}
{{- define "tunery.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "tunery.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* An image's repository below imageRegistry. Takes a list: the root and the image's values. */}}
{{- define "tunery.repository" -}}
{{- $image := index . 1 -}}
{{- $prefix := (index . 0).Values.imageRegistry | default "" | trimSuffix "/" -}}
{{- ternary $image.repository (printf "%s/%s" $prefix $image.repository) (empty $prefix) -}}
{{- end -}}

{{/* An image's full reference. Takes a list: the root and the image's values. */}}
{{- define "tunery.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $repository := include "tunery.repository" . -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "tunery.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tunery.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: is required where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The Lease by which the replicas agree on the one that acts. */}}
{{- define "tunery.leaseName" -}}
{{- include "tunery.fullname" . -}}
{{- end -}}

{{- define "tunery.serviceName" -}}
{{- include "tunery.fullname" . -}}
{{- end -}}

{{/* DNS name that pods reach the progress endpoint by; the certificate bears it. */}}
{{- define "tunery.serviceHost" -}}
{{- printf "%s.%s.svc" (include "tunery.serviceName" .) .Release.Namespace -}}
{{- end -}}

{{/* Where pods post their progress to. */}}
{{- define "tunery.progressUrl" -}}
{{- printf "https://%s:%v" (include "tunery.serviceHost" .) .Values.progress.port -}}
{{- end -}}

{{- define "tunery.tlsSecretName" -}}
{{- default (printf "%s-progress-certificate" (include "tunery.fullname" .)) .Values.progress.certificate.existingSecret -}}
{{- end -}}

{{/* What the schema cannot say of two values; fails with what to do. */}}
{{- define "tunery.checkValues" -}}
{{- if and .Values.preflight.queueName .Values.preflight.queueFromOwner -}}
{{- fail "preflight.queueName and preflight.queueFromOwner: set one of them, as a Job has one queue" -}}
{{- end -}}
{{- if eq (int .Values.progress.port) (int .Values.metrics.port) -}}
{{- fail (printf "progress.port and metrics.port: both are %d, and must differ" (int .Values.metrics.port)) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "tunery.serviceName" .)) -}}
{{- fail (printf "fullnameOverride: set it, as %q, which the release's name makes, is no name for a Service: lower-case letters, digits and -, a letter first" (include "tunery.serviceName" .)) -}}
{{- end -}}
{{- include "tunery.checkEnv" . -}}
{{- include "tunery.checkImages" . -}}
{{- include "tunery.checkGpuMemory" . -}}
{{- end -}}

{{/* Fails where a variable is named that our programs need as it is: each pod would end without a word, or see no GPU. */}}
{{- define "tunery.checkEnv" -}}
{{- range $name := keys (.Values.trainer.env | default dict) | sortAlpha -}}
{{- $why := "" -}}
{{- if has $name (list "PATH" "PYTHONPATH" "PYTHONHOME") -}}
{{- $why = "the image says where its programs are, and pods would not find them" -}}
{{- else if has $name (list "HOME") -}}
{{- $why = "pods may write below /work alone, where theirs is" -}}
{{- else if has $name (list "CUDA_VISIBLE_DEVICES") -}}
{{- $why = "the GPUs of a pod are those that its node gives it" -}}
{{- else if has $name (list "LOCAL_RANK" "WORLD_SIZE") -}}
{{- $why = "a pod trains alone, and would wait for others" -}}
{{- else if regexMatch "^(TUNERY_|KUBEFLOW_TRAINER_)" $name -}}
{{- $why = "the operator sets what begins so" -}}
{{- end -}}
{{- if $why -}}
{{- fail (printf "trainer.env: %s: leave it out: %s" $name $why) -}}
{{- end -}}
{{- end -}}
{{- range .Values.operator.extraEnv -}}
{{- if has .name (list "PATH" "PYTHONPATH" "PYTHONHOME") -}}
{{- fail (printf "operator.extraEnv: %s: leave it out: the image says where its programs are" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Fails where an image's repository has in it what is a value of its own, or is none. */}}
{{- define "tunery.checkImages" -}}
{{- $values := .Values -}}
{{- if contains "://" ($values.imageRegistry | default "") -}}
{{- fail (printf "imageRegistry: %q has a scheme: write the host and the path alone, such as registry.example.com/team" $values.imageRegistry) -}}
{{- end -}}
{{- $images := dict "operator.image" $values.operator.image "trainer.image" $values.trainer.image -}}
{{- $_ := set $images "serving.server.image" $values.serving.server.image -}}
{{- $_ := set $images "serving.engine.image" $values.serving.engine.image -}}
{{- $part := "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*" -}}
{{- range $field, $image := $images -}}
{{- $told := printf "%s.repository: %q" $field $image.repository -}}
{{- if contains "://" $image.repository -}}
{{- fail (printf "%s has a scheme: write the host and the path alone" $told) -}}
{{- else if contains "@" $image.repository -}}
{{- fail (printf "%s has a digest: put it into %s.digest" $told $field) -}}
{{- else if regexMatch ":[^/]*$" $image.repository -}}
{{- fail (printf "%s has a tag: put it into %s.tag" $told $field) -}}
{{- else if not (regexMatch (printf "^(([A-Za-z0-9.-]+|\\[[0-9a-fA-F:]+\\])(:[0-9]+)?/)?%s(/%s)*$" $part $part) $image.repository) -}}
{{- fail (printf "%s is no repository: lower-case letters, digits, and . _ - between them, such as registry.example.com/team/name" $told) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Fails where a GPU would have less than 1Gi, as where the unit was forgotten. */}}
{{- define "tunery.checkGpuMemory" -}}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024 "Mi" 1048576 -}}
{{- range $name, $quantity := .Values.gpuMemory -}}
{{- $number := regexFind "^[0-9.]+" $quantity -}}
{{- $factor := get $units (trimPrefix $number $quantity) -}}
{{- /* What has another unit is large: Gi and above. */ -}}
{{- if and $factor (lt (mulf (float64 $number) (float64 $factor)) 1073741824.0) -}}
{{- fail (printf "gpuMemory: %s: %q is %.0f bytes, less than 1Gi: write the unit, such as 80Gi" $name $quantity (mulf (float64 $number) (float64 $factor))) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What pods of the release reach where networkPolicy is on: DNS and the API server. */}}
{{- define "tunery.egress" -}}
- to:
    - namespaceSelector: {}
  ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
- ports:
    {{- range .Values.networkPolicy.apiServer.ports }}
    - port: {{ . }}
    {{- end }}
  {{- with .Values.networkPolicy.apiServer.to }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Where an alert is explained: its part of docs/operations.md. Takes a list: the root and the alert's name. */}}
{{- define "tunery.runbook" -}}
{{- with (index . 0).Values.metrics.rules.runbookUrl -}}
runbook_url: {{ printf "%s#%s" . (lower (index $ 1)) | quote }}
{{- end -}}
{{- end -}}
