{{/* Name of all that makes the progress endpoint's certificate. */}}
{{- define "tunery.certificateName" -}}
{{- printf "%s-certificate" (include "tunery.fullname" .) -}}
{{- end -}}

{{/* The pod that makes the certificate: the operator's image, under an account that may change that one Secret. */}}
{{- define "tunery.certificatePod" -}}
{{- $operator := .Values.operator -}}
metadata:
  labels:
    app.kubernetes.io/name: {{ include "tunery.name" . }}
    app.kubernetes.io/instance: {{ .Release.Name }}
    app.kubernetes.io/component: certificate
    {{- with $operator.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $operator.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "tunery.certificateName" . }}
  automountServiceAccountToken: true
  enableServiceLinks: false
  restartPolicy: Never
  {{- with include "tunery.pullSecrets" . }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $operator.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $operator.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $operator.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext: {{- toYaml $operator.podSecurityContext | nindent 4 }}
  containers:
    - name: certificate
      image: {{ include "tunery.operatorImage" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [python, -m, tunery_operator.tools.renew_certificate]
      args:
        - --namespace={{ .Release.Namespace }}
        - --secret={{ include "tunery.tlsSecretName" . }}
        - --host={{ include "tunery.serviceHost" . }}
        - --days={{ int .Values.progress.certificate.days }}
      {{- with $operator.extraEnv }}
      env: {{- toYaml . | nindent 8 }}
      {{- end }}
      resources:
        requests: {cpu: 50m, memory: 96Mi, ephemeral-storage: 16Mi}
        limits: {memory: 256Mi}
      # What it says last is what `kubectl describe` shows of it.
      terminationMessagePolicy: FallbackToLogsOnError
      securityContext: {{- toYaml $operator.securityContext | nindent 8 }}
{{- end -}}
