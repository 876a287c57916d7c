{{/* What the release is called: sentry, or RELEASE-sentry. */}}
{{- define "sentry.name" -}}
{{- if contains "sentry" .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-sentry" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sentry.selector" -}}
app.kubernetes.io/name: sentry
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "sentry.labels" -}}
{{ include "sentry.selector" . }}
app.kubernetes.io/part-of: sentry
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "sentry.serviceAccount" -}}
{{- if or .Values.serviceAccount.name (not .Values.serviceAccount.create) -}}
{{- required "serviceAccount.name: needed where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- else -}}
{{- include "sentry.name" . -}}
{{- end -}}
{{- end -}}

{{- define "sentry.priorityClass" -}}
{{- if .Values.priorityClass.create -}}
{{- .Values.priorityClass.name | default (include "sentry.name" .) -}}
{{- else -}}
{{- .Values.priorityClass.name -}}
{{- end -}}
{{- end -}}

{{/* Where runtimes tell what their containers are called. */}}
{{- define "sentry.runtimes" -}}
containerd: /run/containerd/io.containerd.runtime.v2.task
k3s: /run/k3s/containerd/io.containerd.runtime.v2.task
cri-o: /run/containers/storage/overlay-containers
docker: /var/lib/docker/containers
{{- end -}}
