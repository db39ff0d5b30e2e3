{{/* The operator's settings as environment variables: one for each field of Settings, kept equal by a test. */}}
{{- define "tunery.env" -}}
- name: TUNERY_TRAINER_IMAGE
  value: {{ include "tunery.image" (list . .Values.trainer.image) | quote }}
- name: TUNERY_TRAINER_PULL_POLICY
  value: {{ .Values.trainer.image.pullPolicy | quote }}
- name: TUNERY_TRAINER_PULL_SECRETS
  value: {{ .Values.trainer.pullSecrets | default list | toJson | quote }}
- name: TUNERY_POD_TEMPLATE
  value: {{ include "tunery.podTemplate" . | fromYaml | toJson | quote }}
- name: TUNERY_SERVING
  value: {{ include "tunery.serving" . | fromYaml | toJson | quote }}
- name: TUNERY_INHERIT_LABEL_PREFIXES
  value: {{ .Values.trainer.inheritLabels | default list | toJson | quote }}
- name: TUNERY_DEFAULT_OUTPUT_URI
  value: {{ .Values.defaultOutput.uri | quote }}
- name: TUNERY_DEFAULT_OUTPUT_SECRET
  value: {{ .Values.defaultOutput.secretName | quote }}
- name: TUNERY_DEFAULT_TTL_SECONDS
  value: {{ .Values.defaultTtlSecondsAfterFinished | toJson | quote }}
- name: TUNERY_GPU_MEMORY
  value: {{ .Values.gpuMemory | default dict | toJson | quote }}
- name: TUNERY_CACHE_CLAIM
  value: {{ .Values.cache.claimName | quote }}
- name: TUNERY_CACHE_MAX_SIZE
  value: {{ .Values.cache.maxSize | quote }}
- name: TUNERY_PREFLIGHT_CPU
  value: {{ .Values.preflight.resources.cpu | quote }}
- name: TUNERY_PREFLIGHT_MEMORY
  value: {{ .Values.preflight.resources.memory | quote }}
- name: TUNERY_PREFLIGHT_EPHEMERAL_STORAGE
  value: {{ .Values.preflight.resources.ephemeralStorage | quote }}
- name: TUNERY_PREFLIGHT_SCHEDULING
  value: {{ include "tunery.placement" .Values.preflight | fromYaml | toJson | quote }}
- name: TUNERY_PREFLIGHT_QUEUE
  value: {{ .Values.preflight.queueName | quote }}
- name: TUNERY_PREFLIGHT_QUEUE_FROM_OWNER
  value: {{ .Values.preflight.queueFromOwner | quote }}
- name: TUNERY_PREFLIGHT_MAX_CONCURRENT
  value: {{ int .Values.preflight.maxConcurrent | quote }}
- name: TUNERY_PROGRESS_URL
  value: {{ include "tunery.progressUrl" . | quote }}
- name: TUNERY_PROGRESS_PORT
  value: {{ .Values.progress.port | quote }}
- name: TUNERY_PROGRESS_TLS_DIR
  value: /etc/tunery/progress-tls
- name: TUNERY_PROGRESS_TLS_SECRET
  value: {{ include "tunery.tlsSecretName" . | quote }}
- name: TUNERY_PROGRESS_WRITE_SECONDS
  value: {{ .Values.progress.writeSeconds | quote }}
- name: TUNERY_METRICS_PORT
  value: {{ .Values.metrics.port | quote }}
- name: TUNERY_WATCH_NAMESPACES
  value: {{ .Values.watchNamespaces | default list | toJson | quote }}
- name: TUNERY_WORKERS
  value: {{ int .Values.operator.workers | quote }}
- name: TUNERY_LEASE_NAME
  value: {{ include "tunery.leaseName" . | quote }}
- name: TUNERY_LEASE_NAMESPACE
  value: {{ .Release.Namespace | quote }}
- name: TUNERY_POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: TUNERY_LOG_LEVEL
  value: {{ .Values.operator.logging.level | quote }}
- name: TUNERY_LOG_FORMAT
  value: {{ .Values.operator.logging.format | quote }}
{{- end -}}

{{/* Where pods are put, as Placement reads it. Takes the values that hold the four names. */}}
{{- define "tunery.placement" -}}
nodeSelector: {{- toYaml (.nodeSelector | default dict) | nindent 2 }}
tolerations: {{- toYaml (.tolerations | default list) | nindent 2 }}
{{- with .priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* What trainer says of the pods of jobs, as PodTemplate reads it. An id that is null stays null: the cluster chooses. */}}
{{- define "tunery.podTemplate" -}}
{{ include "tunery.placement" .Values.trainer }}
labels: {{- toYaml (.Values.trainer.podLabels | default dict) | nindent 2 }}
annotations: {{- toYaml (.Values.trainer.podAnnotations | default dict) | nindent 2 }}
env: {{- include "tunery.peoplesEnv" . | fromJson | toYaml | nindent 2 }}
caBundle: {{- toYaml .Values.trainer.caBundle | nindent 2 }}
shmSize: {{ .Values.trainer.shmSize | quote }}
security:
  {{- range $id := list "runAsUser" "runAsGroup" "fsGroup" }}
  {{ $id }}: {{ get $.Values.trainer.securityContext $id | default nil | toJson }}
  {{- end }}
gpu: {{- include "tunery.placement" .Values.trainer.gpu | nindent 2 }}
distributed:
  {{- range $part := list "env" "annotations" "resources" }}
  {{ $part }}: {{- toYaml (get ($.Values.trainer.distributed | default dict) $part | default dict) | nindent 4 }}
  {{- end }}
{{- end -}}

{{/*
trainer.env; where it names a proxy, what is in the cluster is not reached through it. Libraries differ in which of
NO_PROXY and no_proxy they read, and none reads both: each that is there gets these, too, and one of them is made.
*/}}
{{- define "tunery.peoplesEnv" -}}
{{- $env := deepCopy (.Values.trainer.env | default dict) -}}
{{- $proxied := false -}}
{{- range $name := keys $env -}}
{{- if regexMatch "^(http|https|all)_proxy$" (lower $name) }}{{ $proxied = true }}{{ end -}}
{{- end -}}
{{- if $proxied -}}
{{- if not (or (hasKey $env "NO_PROXY") (hasKey $env "no_proxy")) }}{{ $_ := set $env "NO_PROXY" "" }}{{ end -}}
{{- range $name := list "NO_PROXY" "no_proxy" -}}
{{- if hasKey $env $name -}}
{{- $hosts := regexSplit "[, ]+" (get $env $name) -1 | compact -}}
{{- if not (has "*" $hosts) }}{{ $hosts = concat $hosts (list ".svc" ".cluster.local" "localhost" "127.0.0.1") | uniq }}{{ end -}}
{{- $_ := set $env $name (join "," $hosts) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $env -}}
{{- end -}}

{{/* What serving says of AdapterServers, as Serving reads it. */}}
{{- define "tunery.serving" -}}
{{- $serving := .Values.serving -}}
serverImage: {{ include "tunery.image" (list . $serving.server.image) | quote }}
serverPullPolicy: {{ $serving.server.image.pullPolicy | quote }}
serverResources: {{- toYaml $serving.server.resources | nindent 2 }}
engineImage: {{ include "tunery.image" (list . $serving.engine.image) | quote }}
enginePullPolicy: {{ $serving.engine.image.pullPolicy | quote }}
allowImage: {{ $serving.engine.allowImage }}
runAsUser: {{ get $serving.engine "runAsUser" | default nil | toJson }}
plugins: {{- toYaml ($serving.engine.plugins | default list) | nindent 2 }}
networkPolicy: {{ $serving.networkPolicy }}
{{- end -}}
