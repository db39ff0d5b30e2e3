{{/* Name of the ConfigMap with the operator's settings. */}}
{{- define "tunery.configName" -}}
{{- printf "%s-config" (include "tunery.fullname" .) -}}
{{- end -}}

{{/* The operator's settings: the values that it reads, by their names, and what the chart derives. No Secret's content. */}}
{{- define "tunery.config" -}}
{{- $values := deepCopy .Values -}}
{{- $config := pick $values "defaultOutput" "defaultTtlSecondsAfterFinished" "gpuMemory" "cache" "preflight" "watchNamespaces" -}}
{{- $_ := set $config "image" (pick $values.image "pullPolicy" "pullSecrets") -}}
{{- $_ := set $config "operator" (pick $values.operator "workers" "logging") -}}
{{- $_ := set $config "metrics" (pick $values.metrics "port") -}}
{{- $_ := set $config "lease" (dict "name" (include "tunery.leaseName" .) "namespace" .Release.Namespace) -}}
{{- $progress := pick $values.progress "port" "writeSeconds" -}}
{{- $derived := dict "url" (include "tunery.progressUrl" .) "tlsDir" "/etc/tunery/progress-tls" "tlsSecret" (include "tunery.tlsSecretName" .) -}}
{{- $_ := set $config "progress" (merge $progress $derived) -}}
{{- $trainer := $values.trainer -}}
{{- $_ := set $trainer "image" (include "tunery.trainerImage" .) -}}
{{- $_ := set $trainer "env" (include "tunery.peoplesEnv" . | fromJson) -}}
{{- /* Helm removes a value that is null: here it leaves the id to the cluster. */ -}}
{{- range $id := list "runAsUser" "runAsGroup" "fsGroup" }}{{ $_ := set $trainer.securityContext $id (get $trainer.securityContext $id | default nil) }}{{ end -}}
{{- $_ := set $config "trainer" $trainer -}}
{{- $serving := pick $values.serving "server" "engine" "networkPolicy" -}}
{{- $_ := set $serving.server "image" (include "tunery.serverImage" .) -}}
{{- $_ := set $serving.engine "runAsUser" (get $serving.engine "runAsUser" | default nil) -}}
{{- $_ := set $config "serving" $serving -}}
{{- toYaml $config -}}
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
