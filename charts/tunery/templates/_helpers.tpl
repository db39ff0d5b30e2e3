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

{{/* The reference of an image of Tunery. Takes a list: the root, the image's name, and the value that overrides it. */}}
{{- define "tunery.image" -}}
{{- $root := index . 0 -}}
{{- $image := $root.Values.image -}}
{{- $registry := $image.registry | default "" | trimSuffix "/" -}}
{{- $repository := printf "%s/tunery-%s" $registry (index . 1) | trimPrefix "/" -}}
{{- default (printf "%s:%s" $repository (default $root.Chart.AppVersion $image.tag)) (index . 2) -}}
{{- end -}}

{{- define "tunery.operatorImage" -}}
{{- include "tunery.image" (list . "operator" .Values.operator.image) -}}
{{- end -}}

{{- define "tunery.trainerImage" -}}
{{- include "tunery.image" (list . "trainer" .Values.trainer.image) -}}
{{- end -}}

{{- define "tunery.serverImage" -}}
{{- include "tunery.image" (list . "server" .Values.serving.server.image) -}}
{{- end -}}

{{/* The Secrets with which nodes pull the images, as a pod has them. */}}
{{- define "tunery.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
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
