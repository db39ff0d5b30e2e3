{{/* What the operator is called by the API server. */}}
{{- define "tunery.operatorName" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "tunery.serviceAccountName" . }}
{{- end -}}

{{/* Binds a policy to the operator's ServiceAccount: whoever else creates Jobs never meets it. */}}
{{- define "tunery.isOperator" -}}
- name: operator
  expression: request.userInfo.username == '{{ include "tunery.operatorName" . }}'
{{- end -}}

{{/* CEL: whether an object is a child of one of our own. Takes the name of the object's variable. */}}
{{- define "tunery.isChild" -}}
{{ . }}.metadata.?labels[?'app.kubernetes.io/managed-by'].orValue('') == 'tunery' && {{ . }}.metadata.?labels[?'tunery.dev/role'].orValue('') in ['preflight', 'train', 'merge', 'report', 'publish', 'batch', 'publish-best', 'fetch'] && size({{ . }}.metadata.?ownerReferences.orValue([])) == 1 && {{ . }}.metadata.ownerReferences.all(o, o.apiVersion.startsWith('tunery.dev/') && o.kind in ['LoRAJob', 'AdapterMerge', 'BatchInference', 'LoRASweep'] && o.?controller.orValue(false))
{{- end -}}

{{/* The same for what is made for a server. */}}
{{- define "tunery.isServerPart" -}}
{{ . }}.metadata.?labels[?'app.kubernetes.io/managed-by'].orValue('') == 'tunery' && {{ . }}.metadata.?labels[?'tunery.dev/role'].orValue('') == 'serve' && size({{ . }}.metadata.?ownerReferences.orValue([])) == 1 && {{ . }}.metadata.ownerReferences.all(o, o.apiVersion.startsWith('tunery.dev/') && o.kind == 'AdapterServer' && o.?controller.orValue(false) && {{ . }}.metadata.name.startsWith(o.name + '-'))
{{- end -}}

{{/* The same for the Service by which the pods of one LoRAJob find each other: it speaks of these alone. */}}
{{- define "tunery.isNodesService" -}}
request.kind.kind == 'Service' && {{ include "tunery.isChild" . }} && {{ . }}.metadata.labels['tunery.dev/role'] == 'train' && {{ . }}.spec.?clusterIP.orValue('') == 'None' && {{ . }}.metadata.ownerReferences.all(o, o.kind == 'LoRAJob' && {{ . }}.metadata.name == 'tunery-' + o.uid.substring(0, 8) && size({{ . }}.spec.?selector.orValue({})) == 3 && {{ . }}.spec.selector[?'tunery.dev/owner-uid'].orValue('') == o.uid && {{ . }}.spec.selector[?'tunery.dev/kind'].orValue('') == 'lorajob' && {{ . }}.spec.selector[?'tunery.dev/role'].orValue('') == 'train')
{{- end -}}

{{/* CEL: whether the controller of an object is a LoRASweep. Takes the name of the object's variable. */}}
{{- define "tunery.isTrial" -}}
{{ . }}.metadata.?ownerReferences.orValue([]).exists(o, o.apiVersion.startsWith('tunery.dev/') && o.kind == 'LoRASweep' && o.?controller.orValue(false))
{{- end -}}

{{/* A validation: where the operator creates anything at all. */}}
{{- define "tunery.namespaceRule" -}}
{{- if .Values.watchNamespaces -}}
- expression: {{ printf "request.namespace in %s" (toJson .Values.watchNamespaces) | quote }}
  reason: Forbidden
  message: The operator creates nothing outside of watchNamespaces.
{{- else -}}
- expression: {{ printf "!(request.namespace in %s)" (.Values.admissionPolicy.deniedNamespaces | default list | toJson) | quote }}
  reason: Forbidden
  message: The operator creates nothing in admissionPolicy.deniedNamespaces.
{{- end -}}
{{- end -}}

{{/* The repositories that a container's image may come from, as JSON. Takes a list: the root and the image. */}}
{{- define "tunery.repositories" -}}
{{- $own := regexReplaceAll "(:[^:/@]+)?(@.*)?$" (index . 1) "" -}}
{{- prepend ((index . 0).Values.admissionPolicy.extraRepositories | default list) $own | toJson -}}
{{- end -}}

{{/* The variables of the trainer's container: manifests/pod.py sets the same, kept equal by a test. */}}
{{- define "tunery.trainerEnv" -}}
{{- $progress := dict
  "KUBEFLOW_TRAINER_SERVER_URL" (include "tunery.progressUrl" .)
  "KUBEFLOW_TRAINER_SERVER_CA_CERT" "/etc/tunery/progress-ca.crt"
  "KUBEFLOW_TRAINER_SERVER_TOKEN" "/var/run/tunery-progress/token"
  "TUNERY_PROGRESS_EVERY" "30" -}}
{{- mergeOverwrite (include "tunery.workEnv" . | fromJson) (include "tunery.jobsEnv" . | fromJson) $progress | toJson -}}
{{- end -}}

{{/* Those of the gateway: manifests/server.py sets the same. */}}
{{- define "tunery.gatewayEnv" -}}
{{- $own := dict "HOME" "/tmp" "PYTHONUNBUFFERED" "1" -}}
{{- $progress := dict
  "KUBEFLOW_TRAINER_SERVER_URL" (include "tunery.progressUrl" .)
  "KUBEFLOW_TRAINER_SERVER_CA_CERT" "/etc/tunery-adapters/progress-ca.crt"
  "KUBEFLOW_TRAINER_SERVER_TOKEN" "/var/run/tunery-progress/token" -}}
{{- mergeOverwrite $own (include "tunery.jobsEnv" . | fromJson) $progress | toJson -}}
{{- end -}}

{{/* Those of the container that brings a server's base model. */}}
{{- define "tunery.modelEnv" -}}
{{- mergeOverwrite (include "tunery.workEnv" . | fromJson) (include "tunery.jobsEnv" . | fromJson) | toJson -}}
{{- end -}}

{{/* What the platform adds to the variables of all of them: trainer.env, and where its authorities are mounted. */}}
{{- define "tunery.jobsEnv" -}}
{{- $authorities := dict -}}
{{- with .Values.trainer.caBundle.configMap -}}
{{- $authorities = dict "TUNERY_CA_BUNDLE" (printf "/mnt/tunery/ca-bundle/%s" $.Values.trainer.caBundle.key) -}}
{{- end -}}
{{- mergeOverwrite (include "tunery.peoplesEnv" . | fromJson) $authorities | toJson -}}
{{- end -}}

{{/* CEL: whether the volume v holds the platform's certificate authorities; an alternative behind others. */}}
{{- define "tunery.orAuthorities" -}}
{{- with .Values.trainer.caBundle -}}
{{- if .configMap -}}
{{ printf "|| v.name == 'volume-ca-bundle' && has(v.configMap) && v.configMap.name == '%s' && v.configMap.?items.orValue([]).all(i, i.key == '%s' && i.path == i.key)" .configMap .key }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Those of every container that works in /work. */}}
{{- define "tunery.workEnv" -}}
{{- dict
  "HOME" "/work"
  "HF_HOME" "/work/hf"
  "XDG_CACHE_HOME" "/work/cache"
  "TORCHINDUCTOR_CACHE_DIR" "/work/cache/inductor"
  "TRITON_CACHE_DIR" "/work/cache/triton"
  "MPLCONFIGDIR" "/work/cache/matplotlib"
  "PYTHONUNBUFFERED" "1" | toJson -}}
{{- end -}}

{{/* Validations of every pod that the operator makes: of variables.pod, and of all its variables.containers. */}}
{{- define "tunery.podRules" -}}
- expression: >-
    variables.pod.?automountServiceAccountToken.orValue(true) == false
    && !variables.pod.?hostNetwork.orValue(false) && !variables.pod.?hostPID.orValue(false)
    && !variables.pod.?hostIPC.orValue(false) && !variables.pod.?shareProcessNamespace.orValue(false)
    && !has(variables.pod.nodeName) && !has(variables.pod.hostAliases) && !has(variables.pod.dnsConfig)
    && !has(variables.pod.resourceClaims)
  reason: Forbidden
  message: The pod has no token for the API server, and nothing of its node's.
- expression: >-
    has(variables.pod.securityContext) && variables.pod.securityContext.?runAsNonRoot.orValue(false)
    && variables.pod.securityContext.?runAsUser.orValue(1) != 0
    && variables.pod.securityContext.?runAsGroup.orValue(1) != 0
    && variables.pod.securityContext.?fsGroup.orValue(1) != 0
    && variables.pod.securityContext.?seccompProfile.?type.orValue('') == 'RuntimeDefault'
    && !has(variables.pod.securityContext.supplementalGroups)
    && !has(variables.pod.securityContext.seLinuxOptions) && !has(variables.pod.securityContext.sysctls)
    && !has(variables.pod.securityContext.appArmorProfile) && !has(variables.pod.securityContext.windowsOptions)
    && !object.spec.template.metadata.?annotations.orValue({}).exists(a,
    a.startsWith('container.apparmor.security.') || a.startsWith('container.seccomp.security.')
    || a.startsWith('seccomp.security.'))
  reason: Forbidden
  message: The pod complies with the restricted Pod Security Standard, and asks for no ids but its own.
- expression: >-
    variables.containers.all(c, has(c.securityContext)
    && c.securityContext.?allowPrivilegeEscalation.orValue(true) == false
    && c.securityContext.?readOnlyRootFilesystem.orValue(false)
    && c.securityContext.?capabilities.?drop.orValue([]) == ['ALL']
    && !has(c.securityContext.capabilities.add) && !c.securityContext.?privileged.orValue(false)
    && c.securityContext.?runAsNonRoot.orValue(true) && c.securityContext.?runAsUser.orValue(1) != 0
    && c.securityContext.?runAsGroup.orValue(1) != 0
    && c.securityContext.?seccompProfile.?type.orValue('RuntimeDefault') == 'RuntimeDefault'
    && !has(c.securityContext.seLinuxOptions) && !has(c.securityContext.appArmorProfile)
    && !has(c.securityContext.procMount) && !has(c.securityContext.windowsOptions))
  reason: Forbidden
  message: Each container complies with the restricted Pod Security Standard, and cannot write its root filesystem.
- expression: "!variables.pod.?priorityClassName.orValue('').startsWith('system-')"
  reason: Forbidden
  message: The priority classes of the system are not for pods of the operator.
{{- end -}}
