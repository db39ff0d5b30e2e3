{{- define "tunery.testName" -}}
{{- printf "%s-test" (include "tunery.fullname" .) -}}
{{- end -}}

{{/* Where `helm test` runs its job: where it is told to, else the first namespace that is served, else the release's. */}}
{{- define "tunery.testNamespace" -}}
{{- $served := append (.Values.watchNamespaces | default list) .Release.Namespace -}}
{{- default (first $served) .Values.test.namespace -}}
{{- end -}}

{{/* The name of that job, as installation.py has it. */}}
{{- define "tunery.testJob" -}}
helm-test
{{- end -}}

{{/* When an object of the test comes and goes: pods stay, so that they can be asked what they said. Takes a weight. */}}
{{- define "tunery.testHook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation{{ if lt (int .) 0 }},hook-succeeded{{ end }}
{{- end -}}

{{/* What all containers of the test have. */}}
{{- define "tunery.testContainer" -}}
resources:
  requests: {cpu: 50m, memory: 96Mi, ephemeral-storage: 16Mi}
  limits: {memory: 512Mi}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}
