{{/* Binds a policy to the operator's ServiceAccount: whoever else creates Jobs never meets it. */}}
{{- define "tunery.isOperator" -}}
- name: operator
  expression: request.userInfo.username == 'system:serviceaccount:{{ .Release.Namespace }}:{{ include "tunery.serviceAccountName" . }}'
{{- end -}}

{{/* CEL: whether an object is a child of one of our own. Takes the name of the object's variable. */}}
{{- define "tunery.isChild" -}}
{{ . }}.metadata.?labels[?'app.kubernetes.io/managed-by'].orValue('') == 'tunery' && {{ . }}.metadata.?labels[?'tunery.dev/role'].orValue('') in ['preflight', 'train', 'merge', 'report', 'publish'] && size({{ . }}.metadata.?ownerReferences.orValue([])) == 1 && {{ . }}.metadata.ownerReferences.all(o, o.apiVersion.startsWith('tunery.dev/') && o.kind in ['LoRAJob', 'AdapterMerge'] && o.?controller.orValue(false))
{{- end -}}

{{/* A validation: where the operator creates anything at all. */}}
{{- define "tunery.namespaceRule" -}}
{{- if .Values.watchNamespaces -}}
- expression: {{ printf "request.namespace in %s" (toJson .Values.watchNamespaces) | quote }}
  reason: Forbidden
  message: The operator creates nothing outside of watchNamespaces.
{{- else -}}
- expression: {{ printf "!(request.namespace in %s)" (toJson .Values.admissionPolicy.deniedNamespaces) | quote }}
  reason: Forbidden
  message: The operator creates nothing in admissionPolicy.deniedNamespaces.
{{- end -}}
{{- end -}}

{{/* The repositories that the container's image may come from, as JSON. */}}
{{- define "tunery.repositories" -}}
{{- $own := include "tunery.repository" (list . .Values.trainer.image) -}}
{{- prepend .Values.admissionPolicy.extraRepositories $own | toJson -}}
{{- end -}}

{{/* The variables of the trainer's container: manifests/pod.py sets the same, kept equal by a test. */}}
{{- define "tunery.trainerEnv" -}}
{{- $own := dict
  "HOME" "/work"
  "HF_HOME" "/work/hf"
  "XDG_CACHE_HOME" "/work/cache"
  "TORCHINDUCTOR_CACHE_DIR" "/work/cache/inductor"
  "TRITON_CACHE_DIR" "/work/cache/triton"
  "MPLCONFIGDIR" "/work/cache/matplotlib"
  "PYTHONUNBUFFERED" "1" -}}
{{- $progress := dict
  "KUBEFLOW_TRAINER_SERVER_URL" (include "tunery.progressUrl" .)
  "KUBEFLOW_TRAINER_SERVER_CA_CERT" "/etc/tunery/progress-ca.crt"
  "KUBEFLOW_TRAINER_SERVER_TOKEN" "/var/run/tunery-progress/token" -}}
{{- mergeOverwrite $own .Values.trainer.env $progress | toJson -}}
{{- end -}}
