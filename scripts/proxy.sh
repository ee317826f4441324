#!/usr/bin/env bash
# Sets up and starts this machine's kube-proxy.
#
#   proxy.sh ADDRESS     the node's address, which is its name, too
#
# Needs /opt/kubernetes/bin/kube-proxy and /opt/kubernetes/cfg/kube-proxy.kubeconfig (kubeconfig.sh); writes
# /opt/kubernetes/cfg/kube-proxy{,.config} and the unit kube-proxy.service.
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 1 1 "$@"
need_root
address=$1
need_own_address "$address"
need_component kube-proxy
need_file "$kube_home/cfg/kube-proxy.kubeconfig" 'copy it from the folder in which kubeconfig.sh was run'
make_kube_home
chmod 600 "$kube_home/cfg/kube-proxy.kubeconfig"

write_file "$kube_home/cfg/kube-proxy.config" 644 << C
kind: KubeProxyConfiguration
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
metricsBindAddress: 0.0.0.0:10249
clientConnection:
  kubeconfig: $kube_home/cfg/kube-proxy.kubeconfig
hostnameOverride: $address
clusterCIDR: $pod_cidr
mode: ipvs
ipvs:
  scheduler: rr
iptables:
  masqueradeAll: false
C
write_file "$kube_home/cfg/kube-proxy" 644 << C
KUBE_PROXY_OPTS="--logtostderr=false \\
--v=2 \\
--log-dir=$kube_home/logs \\
--config=$kube_home/cfg/kube-proxy.config"
C
write_file "$units/kube-proxy.service" 644 << U
[Unit]
Description=Kubernetes Proxy
Documentation=https://kubernetes.io/docs/
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
EnvironmentFile=$kube_home/cfg/kube-proxy
ExecStart=$kube_home/bin/kube-proxy \$KUBE_PROXY_OPTS
Restart=on-failure
RestartSec=2
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
U
start_service kube-proxy
