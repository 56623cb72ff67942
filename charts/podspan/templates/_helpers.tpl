{{- define "podspan.labels" -}}
app.kubernetes.io/name: podspan
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "podspan.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "podspan.subject" -}}
- kind: ServiceAccount
  name: podspan
  namespace: {{ .Release.Namespace }}
{{- end }}

{{/* The agent's configuration. JSON's texts, numbers and lists are TOML's, too. */}}
{{- define "podspan.config" -}}
registry = "kubernetes"
# The host's kernel parameters: in the container /proc/sys is read-only.
proc_sys = "/host/proc/sys"
routing = {{ toJson .Values.routing }}
{{- with .Values.clusterCIDRs }}
cluster_cidrs = {{ toJson . }}
{{- end }}
{{- with .Values.routers }}
routers = {{ toJson . }}
{{- end }}
{{- if .Values.allocate }}
allocate_pod_cidrs = true
{{- end }}
{{- with .Values.nodePrefixLengths }}
node_prefix_lengths = {{ toJson . }}
{{- end }}
{{- with .Values.mtu }}
mtu = {{ int . }}
{{- end }}
{{- with .Values.vxlan.vni }}
vxlan_vni = {{ int . }}
{{- end }}
{{- with .Values.vxlan.port }}
vxlan_port = {{ int . }}
{{- end }}
{{- if .Values.vxlan.accept }}
vxlan_accept = true
{{- end }}
masquerade = {{ toJson .Values.masquerade }}
{{- with .Values.nonMasqueradeCIDRs }}
non_masquerade_cidrs = {{ toJson . }}
{{- end }}
bridge_netfilter = {{ toJson .Values.bridgeNetfilter }}
policy = {{ toJson .Values.policy.enabled }}
policy_when_unknown = {{ toJson .Values.policy.whenUnknown }}
policy_wait_milliseconds = {{ int .Values.policy.waitMilliseconds }}
policy_keeps_connections = {{ toJson .Values.policy.keepConnections }}
network = {{ toJson .Values.network }}
bridge = {{ toJson .Values.bridge }}
{{- with .Values.dataDir }}
data_dir = {{ toJson . }}
{{- end }}
listen = {{ toJson .Values.listen }}
log = {{ toJson .Values.log }}
probe = {{ toJson .Values.probe }}
{{- end }}

{{/* What asks the agent at that path: on loopback where it listens everywhere. */}}
{{- define "podspan.probe" -}}
{{- $listen := splitList ":" .listen -}}
{{- $host := initial $listen | join ":" | trimPrefix "[" | trimSuffix "]" -}}
httpGet:
  host: {{ ternary "127.0.0.1" $host (has $host (list "0.0.0.0" "::")) | quote }}
  port: {{ last $listen }}
  path: {{ .path }}
{{- end }}

{{/* Nothing but what is added by name; no file of the image can be written. */}}
{{- define "podspan.securityContext" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What every container that cleans has; more volumeMounts may follow. */}}
{{- define "podspan.cleanup" -}}
securityContext:
  {{- include "podspan.securityContext" . | nindent 2 }}
    # Links, addresses, routes, nftables.
    add: [NET_ADMIN]
volumeMounts:
  - name: conflists
    mountPath: /etc/cni/net.d
  - name: run
    mountPath: /run/podspan
  {{- with .Values.dataDir }}
  - name: data
    mountPath: {{ . }}
  {{- end }}
{{- end }}
