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
