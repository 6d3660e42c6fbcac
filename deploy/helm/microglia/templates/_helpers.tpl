{{- define "microglia.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "microglia" .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-microglia" (.Release.Name | trunc 53 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "microglia.selectorLabels" -}}
app.kubernetes.io/name: microglia
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "microglia.metadata" -}}
name: {{ include "microglia.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "microglia.labels" (dict "root" . "labels" dict) | nindent 2 }}
{{- end -}}

{{/* Takes root and labels. These override the labels for every object; those of the selector override both. */}}
{{- define "microglia.labels" -}}
{{- $own := dict
      "app.kubernetes.io/version" .root.Chart.AppVersion
      "app.kubernetes.io/managed-by" .root.Release.Service
      "helm.sh/chart" (printf "%s-%s" .root.Chart.Name (.root.Chart.Version | replace "+" "_")) -}}
{{- $selector := include "microglia.selectorLabels" .root | fromYaml -}}
{{- toYaml (merge dict $selector .labels .root.Values.labels $own) -}}
{{- end -}}

{{- define "microglia.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether the configuration sets daemon.watch_config: then the running daemon reloads an edit. */}}
{{- define "microglia.watched" -}}
{{- $daemon := (fromToml .Values.config).daemon -}}
{{- if kindIs "map" $daemon -}}
{{- if ne ($daemon.watch_config | default "off" | toString) "off" }}yes{{ end -}}
{{- end -}}
{{- end -}}

{{/* Whether the history is in PostgreSQL. Of an existing ConfigMap only the value can tell. */}}
{{- define "microglia.database" -}}
{{- $daemon := (fromToml .Values.config).daemon -}}
{{- if .Values.database.existingSecret -}}
yes
{{- else if kindIs "map" $daemon -}}
{{- if $daemon.database_url_file }}yes{{ end -}}
{{- end -}}
{{- end -}}

{{/* The affinity of the values; unless they set a podAntiAffinity, several replicas prefer different nodes. */}}
{{- define "microglia.affinity" -}}
{{- $affinity := deepCopy .Values.affinity -}}
{{- if and (gt (int .Values.replicas) 1) (not (hasKey $affinity "podAntiAffinity")) -}}
{{- $selector := dict "matchLabels" (include "microglia.selectorLabels" . | fromYaml) -}}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" $selector -}}
{{- $preferred := list (dict "weight" 100 "podAffinityTerm" $term) -}}
{{- $_ := set $affinity "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" $preferred) -}}
{{- end -}}
{{- with $affinity }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* Takes root, enabled (true, false or "auto") and kind, a kind of the Prometheus operator. */}}
{{- define "microglia.wanted" -}}
{{- if eq (toString .enabled) "auto" -}}
{{- if .root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind) }}yes{{ end -}}
{{- else if .enabled -}}
yes
{{- end -}}
{{- end -}}

{{/* The environment variables that the chart sets. */}}
{{- define "microglia.env" -}}
- name: MICROGLIA_CONFIG
  value: /config/microglia.toml
- name: MICROGLIA_LISTEN
  value: 0.0.0.0:8749
- name: STATE_DIRECTORY
  value: /state
- name: MICROGLIA_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- with .Values.log.levels }}
- name: RUST_LOG
  value: {{ quote . }}
{{- end }}
{{- end -}}
