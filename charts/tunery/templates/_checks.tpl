{{/* What the schema cannot say of the values, or not where the fault is; fails with all of it, a line each. */}}
{{- define "tunery.checkValues" -}}
{{- $told := list -}}
{{- range $check := list "Together" "Images" "Names" "Env" "Sizes" "Places" -}}
{{- range $line := splitList "\n" (include (printf "tunery.check%s" $check) $) -}}
{{- with trim $line }}{{ $told = append $told . }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if $told }}{{ fail (join "\n" (prepend $told "")) }}{{ end -}}
{{- end -}}

{{/* Values that do not go together. */}}
{{- define "tunery.checkTogether" }}
{{- if and .Values.preflight.queueName .Values.preflight.queueFromOwner }}
preflight.queueName and preflight.queueFromOwner: set one of them, as a Job has one queue
{{- end }}
{{- if eq (int .Values.progress.port) (int .Values.metrics.port) }}
progress.port and metrics.port: both are {{ .Values.progress.port }}, and must differ
{{- end }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "tunery.serviceName" .)) }}
fullnameOverride: set it, as {{ include "tunery.serviceName" . | quote }}, which the release's name makes, is no name for a Service: lower-case letters, digits and -, a letter first
{{- end }}
{{- $served := .Values.watchNamespaces | default list }}
{{- if and $served .Values.test.namespace (not (has .Values.test.namespace $served)) }}
test.namespace: {{ quote .Values.test.namespace }} is none of watchNamespaces, and nobody would look at the job there
{{- end }}
{{- end }}

{{/* Variables that our programs need as they are: each pod would end without a word, or see no GPU. */}}
{{- define "tunery.checkEnv" }}
{{- $programs := list "PATH" "PYTHONPATH" "PYTHONHOME" }}
{{- $distributed := get (.Values.trainer.distributed | default dict) "env" | default dict }}
{{- range $where, $variables := dict "trainer.env" (.Values.trainer.env | default dict) "trainer.distributed.env" $distributed }}
{{- range $name, $value := $variables }}
{{- $why := "" }}
{{- if has $name $programs }}
{{- $why = "the image says where its programs are, and pods would not find them" }}
{{- else if eq $name "HOME" }}
{{- $why = "pods may write below /work alone, where theirs is" }}
{{- else if has $name (list "CUDA_VISIBLE_DEVICES" "NVIDIA_VISIBLE_DEVICES") }}
{{- $why = "the GPUs of a pod are those that its node gives it" }}
{{- else if has $name (list "LOCAL_RANK" "WORLD_SIZE") }}
{{- $why = "processes that train together find each other without it, and would wait for others" }}
{{- else if has $name (list "AWS_PROFILE" "AWS_DEFAULT_PROFILE") }}
{{- $why = "pods have no profiles: a Secret that a manifest names, or the pod's own identity, opens a bucket" }}
{{- else if and (eq $name "PYTHONWARNINGS") (regexMatch "(^|,)\\s*e" $value) }}
{{- $why = "the first warning of a library would end each pod" }}
{{- else if and (regexMatch "(^|_)(TOKEN|PASSWORD|PASSWD|SECRET|API_KEY|ACCESS_KEY|ACCESS_KEY_ID|SECRET_KEY)$" $name) (ne $name "HF_HUB_DISABLE_IMPLICIT_TOKEN") }}
{{- $why = "who may look at a pod may read it: put a credential into the Secret that a manifest's secretRef names" }}
{{- else if and (regexMatch "^(TUNERY_|KUBEFLOW_TRAINER_)" $name) (ne $name "TUNERY_SIMULATED_DEVICES") }}
{{- $why = "the operator sets what begins so" }}
{{- end }}
{{- if $why }}
{{ $where }}: {{ $name }}: leave it out: {{ $why }}
{{- else if and (eq $name "TUNERY_SIMULATED_DEVICES") (not (regexMatch "^(|[0-9]|1[0-6])$" $value)) }}
{{ $where }}: {{ $name }}: must be a whole number from 1 to 16, or 0 for none, is {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name := keys (get (.Values.trainer.distributed | default dict) "resources" | default dict) | sortAlpha }}
{{- if regexMatch "/(gpu|mig-.*|.*\\.shared)$" $name }}
trainer.distributed.resources: {{ $name }}: leave it out: resources.gpus of a manifest says how many GPUs a pod has
{{- end }}
{{- end }}
{{- range .Values.operator.extraEnv }}
{{- if has .name $programs }}
operator.extraEnv: {{ .name }}: leave it out: the image says where its programs are
{{- end }}
{{- end }}
{{- end }}

{{/* Images, whose parts are values of their own. */}}
{{- define "tunery.checkImages" }}
{{- $part := "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*" }}
{{- $host := "([A-Za-z0-9.-]+|\\[[0-9a-fA-F:]+\\])(:[0-9]+)?" }}
{{- $registry := .Values.imageRegistry | default "" }}
{{- if contains "://" $registry }}
imageRegistry: {{ quote $registry }} has a scheme: write the host and the path alone, such as registry.example.com/team
{{- else if not (regexMatch (printf "^(%s(/%s)*/?)?$" $host $part) $registry) }}
imageRegistry: {{ quote $registry }} is no registry: a host, with its port if need be, and a path of lower-case letters, digits, and . _ - between them, such as registry.example.com:5000/team
{{- end }}
{{- $images := dict "operator.image" .Values.operator.image "trainer.image" .Values.trainer.image }}
{{- $_ := set $images "serving.server.image" .Values.serving.server.image }}
{{- $_ := set $images "serving.engine.image" .Values.serving.engine.image }}
{{- $repositories := dict }}
{{- range $field, $image := $images }}
{{- $_ := set $repositories (printf "%s.repository" $field) (list $image.repository (printf "put it into %s" $field)) }}
{{- end }}
{{- range $index, $repository := .Values.admissionPolicy.extraRepositories }}
{{- $_ := set $repositories (printf "admissionPolicy.extraRepositories[%d]" $index) (list $repository "leave it out") }}
{{- end }}
{{- range $field, $said := $repositories }}
{{- $repository := first $said }}
{{- $aside := last $said }}
{{- $its := hasPrefix "put" $aside }}
{{- if contains "://" $repository }}
{{ $field }}: {{ quote $repository }} has a scheme: write the host and the path alone
{{- else if contains "@" $repository }}
{{ $field }}: {{ quote $repository }} has a digest: {{ $aside }}{{ if $its }}.digest{{ end }}
{{- else if regexMatch ":[^/]*$" $repository }}
{{ $field }}: {{ quote $repository }} has a tag: {{ $aside }}{{ if $its }}.tag{{ end }}
{{- else if not (regexMatch (printf "^(%s/)?%s(/%s)*$" $host $part $part) $repository) }}
{{ $field }}: {{ quote $repository }} is no repository: lower-case letters, digits, and . _ - between them, such as registry.example.com/team/name
{{- end }}
{{- end }}
{{- end }}

{{/* Names within values, which Helm's schema tells at the place of another value. */}}
{{- define "tunery.checkNames" }}
{{- $domain := "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*" }}
{{- $qualified := printf "^(%s/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$" $domain }}
{{- range $field, $map := include "tunery.namedMaps" . | fromJson }}
{{- $resources := hasPrefix "operator.resources." $field }}
{{- range $name, $value := $map }}
{{- if or (gt (len $name) 317) (not (regexMatch $qualified $name)) }}
{{ $field }}: {{ quote $name }} is no name of a {{ ternary "resource" "label or annotation" $resources }}: at most 63 letters, digits, -, _ and ., beginning and ending with a letter or digit, if need be behind a domain and one /
{{- else if and (has $field (list "trainer.podLabels" "progress.certificate.jobLabels")) (regexMatch "^(batch\\.kubernetes\\.io/.*|job-name|controller-uid)$" $name) }}
{{ $field }}: {{ quote $name }} is a label by which a Job finds its pods: leave it out
{{- else if or (and (eq $field "trainer.podLabels") (regexMatch "^(tunery\\.dev/.*|app\\.kubernetes\\.io/managed-by)$" $name)) (and (has $field (list "operator.podLabels" "progress.certificate.jobLabels")) (regexMatch "^(app\\.kubernetes\\.io/(name|instance|component|version|managed-by)|helm\\.sh/chart|tunery\\.dev/.*)$" $name)) }}
{{ $field }}: {{ quote $name }} is a label of Tunery's own: choose another name
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $value := .Values.trainer.env }}
{{- if not (regexMatch "^[A-Za-z_][A-Za-z0-9_]*$" $name) }}
trainer.env: {{ quote $name }} is no name of a variable: letters, digits and _, no digit first
{{- end }}
{{- end }}
{{- range $name, $value := .Values.gpuMemory }}
{{- if not (regexMatch "^[a-z0-9.-]+/[A-Za-z0-9._-]+(=[A-Za-z0-9._-]+)?$" $name) }}
gpuMemory: {{ quote $name }} is no name of a resource, as nvidia.com/gpu, or of a label with its value, as nvidia.com/gpu.product=NVIDIA-L4
{{- end }}
{{- end }}
{{- end }}

{{/* The values whose names are those of labels, annotations and resources, as JSON. */}}
{{- define "tunery.namedMaps" -}}
{{- $maps := dict -}}
{{- range $field := list
  "operator.nodeSelector" "operator.podLabels" "operator.podAnnotations" "operator.resources.requests"
  "operator.resources.limits" "serviceAccount.annotations" "trainer.podLabels" "trainer.podAnnotations"
  "trainer.nodeSelector" "trainer.gpu.nodeSelector" "preflight.nodeSelector" "progress.certificate.jobLabels"
  "serving.podMonitor.labels" "serving.dashboard.labels" "serving.dashboard.annotations" "metrics.serviceMonitor.labels"
  "metrics.rules.labels" "metrics.dashboard.labels" "metrics.dashboard.annotations"
-}}
{{- $at := $.Values -}}
{{- range $part := splitList "." $field }}{{ $at = get ($at | default dict) $part | default dict }}{{ end -}}
{{- $_ := set $maps $field $at -}}
{{- end -}}
{{- toJson $maps -}}
{{- end -}}

{{/* Sizes that are too small for what they are of, as where the unit was forgotten. */}}
{{- define "tunery.checkSizes" }}
{{- $sizes := dict "trainer.shmSize" (list .Values.trainer.shmSize "1Mi") "cache.maxSize" (list .Values.cache.maxSize "1Mi") }}
{{- $cpus := dict }}
{{- range $field, $resources := dict "preflight.resources" .Values.preflight.resources "serving.server.resources" .Values.serving.server.resources "operator.resources.requests" .Values.operator.resources.requests "operator.resources.limits" .Values.operator.resources.limits }}
{{- range $name, $least := dict "memory" "64Mi" "ephemeralStorage" "1Mi" "ephemeral-storage" "1Mi" }}
{{- $_ := set $sizes (printf "%s.%s" $field $name) (list (get $resources $name) $least) }}
{{- end }}
{{- $_ := set $cpus (printf "%s.cpu" $field) (get $resources "cpu") }}
{{- end }}
{{- range $field, $cpu := $cpus }}
{{- with $cpu }}
{{- $text := kindIs "string" . | ternary (toString .) (printf "%g" (float64 .)) }}
{{- if regexMatch "[kKMGTPE]i?$" $text }}
{{ $field }}: {{ quote $text }} is an amount of memory: write one of CPU, such as 4, 0.5 or 500m
{{- else if gt (include "tunery.bytes" . | float64) 256.0 }}
{{ $field }}: {{ quote $text }} are more CPUs than 256: write the unit, such as {{ trimSuffix "m" $text }}m, or fewer
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $quantity := .Values.gpuMemory }}
{{- $_ := set $sizes (printf "gpuMemory: %s" $name) (list $quantity "1Gi") }}
{{- end }}
{{- range $field, $said := $sizes }}
{{- $quantity := first $said }}
{{- if $quantity }}
{{- $bytes := include "tunery.bytes" $quantity | float64 }}
{{- if lt $bytes (include "tunery.bytes" (last $said) | float64) }}
{{- $least := last $said }}
{{- $number := kindIs "string" $quantity | ternary (regexFind "^[0-9.]+" (toString $quantity)) (printf "%.0f" (float64 $quantity)) }}
{{- $meant := printf "%s%s" $number (lt (float64 $number) 256.0 | ternary "Gi" "Mi") }}
{{- $forgotten := and (eq $number (toString $quantity | trimSuffix ".0")) (lt (float64 $number) 1048576.0) (ge (include "tunery.bytes" $meant | float64) (include "tunery.bytes" $least | float64)) }}
{{ $field }}: {{ kindIs "string" $quantity | ternary (quote $quantity) $number }} is {{ printf "%.0f" $bytes }} bytes, less than {{ $least }}: {{ $forgotten | ternary (printf "write the unit, such as %s" $meant) (printf "write at least %s" $least) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A quantity as a number of bytes. */}}
{{- define "tunery.bytes" -}}
{{- if kindIs "string" . -}}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976 -}}
{{- $number := regexFind "^[0-9.]+" . -}}
{{- printf "%f" (mulf (float64 $number) (float64 (get $units (trimPrefix $number .)))) -}}
{{- else -}}
{{- printf "%f" (float64 .) -}}
{{- end -}}
{{- end -}}

{{/* Places with what nobody fills in: braces stand for something in outputPrefixes alone, and there for one word. */}}
{{- define "tunery.checkPlaces" }}
{{- range $index, $prefix := .Values.tenantPolicy.outputPrefixes }}
{{- if regexMatch "[{}]" (replace "{namespace}" "" $prefix) }}
tenantPolicy.outputPrefixes[{{ $index }}]: {{ quote $prefix }} has braces beside {namespace}, which alone stands for something: the namespace of the object
{{- end }}
{{- end }}
{{- range $field, $place := dict "defaultOutput.uri" .Values.defaultOutput.uri "test.outputUri" .Values.test.outputUri }}
{{- if regexMatch "[{}]" ($place | default "") }}
{{ $field }}: {{ quote $place }} has braces, and nothing is put in their place here: {{ eq $field "defaultOutput.uri" | ternary "<namespace>/<name>/<uid> is added to it" "write the place itself" }}
{{- end }}
{{- end }}
{{- end }}
