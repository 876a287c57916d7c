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

{{/* Labels of pods, of which no two may become one label of metrics. */}}
{{- define "sentry.podLabels" -}}
{{- $shown := dict -}}
{{- range .Values.podLabels -}}
{{- $label := printf "label_%s" (regexReplaceAll "[^A-Za-z0-9]" . "_") -}}
{{- if hasKey $shown $label -}}
{{- fail (printf "podLabels: %s and %s would both be %s" (get $shown $label) . $label) -}}
{{- end -}}
{{- $_ := set $shown $label . -}}
{{- end -}}
{{- join "," .Values.podLabels -}}
{{- end -}}

{{/* Where runtimes tell what their containers are called, by the names of volumes. */}}
{{- define "sentry.runtimes" -}}
{{- $folders := dict
  "containerd" "/run/containerd/io.containerd.runtime.v2.task"
  "k3s" "/run/k3s/containerd/io.containerd.runtime.v2.task"
  "cri-o" "/run/containers/storage/overlay-containers"
  "docker" "/var/lib/docker/containers"
-}}
{{- range $index, $path := .Values.extraRuntimeFolders -}}
{{- if has $path (append (values $folders) "/sys/fs/cgroup") -}}
{{- fail (printf "extraRuntimeFolders: %s is mounted already" $path) -}}
{{- end -}}
{{- $_ := set $folders (printf "extra-%d" $index) $path -}}
{{- end -}}
{{- toYaml $folders -}}
{{- end -}}
