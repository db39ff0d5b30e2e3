{{/* The operator's rights in a namespace that it serves: in a ClusterRole for all, or in a Role for each. */}}
{{- define "tunery.rules" -}}
- apiGroups: [tunery.dev]
  resources: [lorajobs, adaptermerges]
  verbs: [get, list, watch, delete]
- apiGroups: [tunery.dev]
  resources: [lorajobs/status, adaptermerges/status]
  verbs: [patch]
# An owner reference that blocks deletion needs it; the operator sets no finalizer.
- apiGroups: [tunery.dev]
  resources: [lorajobs/finalizers, adaptermerges/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# Why a pod cannot be made, or its volumes not be mounted, is told nowhere else.
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- end -}}

{{- define "tunery.subjects" -}}
- kind: ServiceAccount
  name: {{ include "tunery.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}
