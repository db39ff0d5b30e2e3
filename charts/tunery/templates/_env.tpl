{{/* The operator's settings as environment variables: one for each field of Settings, kept equal by a test. */}}
{{- define "tunery.env" -}}
- name: TUNERY_TRAINER_IMAGE
  value: {{ include "tunery.image" (list . .Values.trainer.image) | quote }}
- name: TUNERY_TRAINER_PULL_POLICY
  value: {{ .Values.trainer.image.pullPolicy | quote }}
- name: TUNERY_TRAINER_PULL_SECRETS
  value: {{ .Values.trainer.pullSecrets | toJson | quote }}
- name: TUNERY_DEFAULT_OUTPUT_URI
  value: {{ .Values.defaultOutput.uri | quote }}
- name: TUNERY_DEFAULT_OUTPUT_SECRET
  value: {{ .Values.defaultOutput.secretName | quote }}
- name: TUNERY_GPU_MEMORY
  value: {{ .Values.gpuMemory | toJson | quote }}
- name: TUNERY_PREFLIGHT_CPU
  value: {{ .Values.preflight.resources.cpu | quote }}
- name: TUNERY_PREFLIGHT_MEMORY
  value: {{ .Values.preflight.resources.memory | quote }}
- name: TUNERY_PREFLIGHT_EPHEMERAL_STORAGE
  value: {{ .Values.preflight.resources.ephemeralStorage | quote }}
- name: TUNERY_PROGRESS_URL
  value: {{ printf "https://%s:%v" (include "tunery.serviceHost" .) .Values.progress.port | quote }}
- name: TUNERY_PROGRESS_PORT
  value: {{ .Values.progress.port | quote }}
- name: TUNERY_PROGRESS_TLS_DIR
  value: /etc/tunery/progress-tls
- name: TUNERY_METRICS_PORT
  value: {{ .Values.metrics.port | quote }}
- name: TUNERY_LOG_LEVEL
  value: {{ .Values.operator.logging.level | quote }}
- name: TUNERY_LOG_FORMAT
  value: {{ .Values.operator.logging.format | quote }}
{{- end -}}
