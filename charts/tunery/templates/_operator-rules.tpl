{{/* The permissions of the operator in a namespace that it serves: in a ClusterRole for all, or in a Role for each. */}}
{{- define "tunery.rules" -}}
- apiGroups: [tunery.dev]
  resources: [lorajobs, adaptermerges, adapterservers, batchinferences, lorasweeps]
  verbs: [get, list, watch]
# When their time to live is over; a server has none.
- apiGroups: [tunery.dev]
  resources: [lorajobs, adaptermerges, batchinferences, lorasweeps]
  verbs: [delete]
# The trials of a LoRASweep.
- apiGroups: [tunery.dev]
  resources: [lorajobs]
  verbs: [create, patch]
- apiGroups: [tunery.dev]
  resources:
    - lorajobs/status
    - adaptermerges/status
    - adapterservers/status
    - batchinferences/status
    - lorasweeps/status
  verbs: [patch]
# An owner reference that blocks deletion needs it; the operator sets no finalizer.
- apiGroups: [tunery.dev]
  resources:
    - lorajobs/finalizers
    - adaptermerges/finalizers
    - adapterservers/finalizers
    - batchinferences/finalizers
    - lorasweeps/finalizers
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
# Whose a pod is that says it is a server's.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get]
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [get, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch]
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
