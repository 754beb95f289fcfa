{{- define "nbpulse.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "nbpulse.pod" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
volumes:
  - name: keys
    secret:
      secretName: {{ .Values.keysSecret }}
      defaultMode: 0440
{{- end }}

{{- define "nbpulse.container" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: keys, mountPath: /var/lib/nbpulse, readOnly: true}
{{- end }}

{{- define "nbpulse.environment" -}}
- name: NBPULSE_PUBLIC_URL
  value: {{ .Values.publicUrl | quote }}
- name: NBPULSE_REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ .Values.storesSecret }}, key: redis_url}}
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "nbpulse.database" -}}
- name: NBPULSE_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ .Values.storesSecret }}, key: database_url}}
{{- end }}
